"""``log.notify`` through the program: who is told, and that the address is shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import programs
import pytest
import smallest
from webhook import SECRET, serving

TEXT = "the king walked under the trees while rain fell on the stone\n" * 60


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOGPT_NOTIFY", "")  # what the program sets there ends with the test
    return tmp_path


def recorded(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_and_its_resume(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "toy.toml").write_text(smallest.recipe())
    with serving() as hook:
        given = ["--set", f"log.notify={hook.address}"]
        assert programs.nanogpt("recipe", "show", "toy.toml", *given) == 0
        assert programs.nanogpt("train", "toy.toml", *given) == 0
        assert [text.split(",")[0] for text in hook.texts] == ["toy: finished after 2 steps"]
        more = ["--set", "train.max_steps=3"]
        os.environ["NANOGPT_NOTIFY"] = ""
        assert programs.nanogpt("train", "toy", "--resume", *more) == 0
        assert len(hook.texts) == 1
        said = capfd.readouterr()
        assert "nobody is told" in said.err
        os.environ["NANOGPT_NOTIFY"] = hook.address
        assert programs.nanogpt("train", "toy", "--resume", "--set", "train.max_steps=4") == 0
        assert len(hook.texts) == 2
    shown = [*said, *capfd.readouterr()]
    assert b"127.0.0.1" in recorded(place / "runs")
    assert SECRET.encode() not in recorded(place / "runs")
    assert not any(SECRET in text for text in shown)


def test_an_address_in_a_recipe_file(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as hook:
        (place / "toy.toml").write_text(smallest.recipe(log={"notify": hook.address}))
        assert programs.nanogpt("recipe", "show", "toy.toml") == 0
        assert programs.nanogpt("train", "toy.toml", "--procs", "1") == 0
        assert len(hook.texts) == 1
        assert os.environ["NANOGPT_NOTIFY"] == hook.address, "where child processes find it"
    assert SECRET not in "".join(capfd.readouterr())
    assert SECRET.encode() not in recorded(place / "runs")


@pytest.mark.parametrize("where", ["set", "file", "environment"])
def test_what_is_no_address_is_one_line(
    where: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://ntfy.example.com/s3cret"
    log = {"notify": address} if where == "file" else {}
    (place / "toy.toml").write_text(smallest.recipe(log=log))
    if where == "environment":
        monkeypatch.setenv("NANOGPT_NOTIFY", address)
    given = ["--set", f"notify={address}"] if where == "set" else []
    assert programs.nanogpt("train", "toy.toml", *given) == 2
    said = capfd.readouterr().err
    assert "http:// is for this computer alone" in said
    assert "s3cret" not in said
    assert not (place / "runs").exists()
