"""Which words are addresses of runs on other machines, and what they mean."""

from __future__ import annotations

import pytest

from nanogpt_cli.run.remote import address


@pytest.mark.parametrize(
    ("text", "destination", "candidates"),
    [
        ("gpu1:small", "gpu1", ("./small", "./runs/small")),
        ("ada@gpu1.lab:/data/runs/a b", "ada@gpu1.lab", ("/data/runs/a b",)),
        ("gpu1:~/runs/small/", "gpu1", ("./runs/small", "./runs/runs/small")),
        ("gpu1:", "gpu1", ("./runs",)),
        ("gpu1:~", "gpu1", ("./runs",)),
        ("[::1]:small", "::1", ("./small", "./runs/small")),
        ("ada@[fe80::1%eth0]:/r", "ada@fe80::1%eth0", ("/r",)),
        ("gpu1:a:b", "gpu1", ("./a:b", "./runs/a:b")),
        ("gpu1:-rf", "gpu1", ("./-rf", "./runs/-rf")),
        ("gpu1:/", "gpu1", ("/",)),
    ],
)
def test_an_address(text: str, destination: str, candidates: tuple[str, ...]) -> None:
    found = address.parse(text)
    assert found is not None
    assert (found.destination, found.candidates) == (destination, candidates)


@pytest.mark.parametrize(
    "text",
    ["small", "runs/small", "runs/a:b", "./a:b", ":small", "-oProxyCommand=x:y", "a@-x:y",
     "-l@host:y", "a b:c", "x\x1b[5m:y", "host:a\0b", "[gpu1]:x", "@host:x", "http://a/b"],
)  # fmt: skip
def test_no_address(text: str) -> None:
    assert address.parse(text) is None


def test_copies_have_names_that_every_file_system_takes() -> None:
    odd = address.parse("ada@[fe80::1%eth0]:/data/we\x1bird|na:me")
    assert odd is not None
    assert odd.name == "we-ird-na-me@fe80--1%eth0"
    other = address.parse("[fe80::1%eth0]:/data/we\x1bird|na:me")
    assert other is not None
    assert other.copies() != odd.copies()
