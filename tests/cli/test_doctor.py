"""``nanogpt doctor`` and ``nanogpt cache``: what works here, what is kept, making room."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli import caches, extras
from nanogpt_cli.cli import app, doctor
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import capabilities

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "_SECONDS", 0.01)
    monkeypatch.setattr(capabilities, "_SIDE", {"cpu": 64, "cuda": 64, "mps": 64})


@pytest.mark.usefixtures("quick")
def test_a_healthy_machine_is_told_so() -> None:
    result = CliRunner().invoke(app, ["doctor", "--no-compile", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"]
    assert found["problems"] == []
    cpu = found["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["tflops"]["fp32"] > 0
    assert found["compile"] == {
        "device": cpu["device"], "works": None, "seconds": 0.0, "why": "not tried (--no-compile)",
    }  # fmt: skip
    assert {row["name"] for row in found["disk"]} == {"cache", "here", "temporary"}


@pytest.mark.usefixtures("quick")
def test_what_is_broken_is_named_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ESSENTIAL", (*doctor.ESSENTIAL, "no_such_library"))
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1e18)
    monkeypatch.setattr(capabilities, "_multiplies_correctly", lambda *_: False)
    result = CliRunner().invoke(app, ["doctor", "--no-compile"])
    assert result.exit_code == 1
    assert "broken: no_such_library is missing" in result.stderr
    assert "broken: cpu: bf16 matrix products are wrong" in result.stderr
    assert "free; see nanogpt cache list" in result.stderr


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "raise RuntimeError('first line\\nsecond line')"
    monkeypatch.setattr(capabilities, "_COMPILED", said)
    found = capabilities.try_compile("cpu")
    assert not found.works
    assert found.why_not == "RuntimeError: first line"
    monkeypatch.setattr(capabilities, "_COMPILED", "import os; os._exit(3)")
    assert capabilities.try_compile("cpu").why_not == "exit code 3"
    monkeypatch.setattr(capabilities, "_COMPILED", "pass")
    assert capabilities.try_compile("cpu").works


def test_watching_needs_a_terminal_and_is_no_json() -> None:
    result = CliRunner().invoke(app, ["doctor", "--watch"])
    assert isinstance(result.exception, UserError)
    assert "needs a terminal" in str(result.exception)
    result = CliRunner().invoke(app, ["doctor", "--watch", "--json"])
    assert "--json prints one object" in str(result.exception)


def test_extras_are_those_of_the_package_and_name_what_they_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        name: wanted
        for name, wanted in project["optional-dependencies"].items()
        if name not in ("test", "dev")
    }
    assert set(extras.EXTRAS) == set(declared)
    for name, wanted in declared.items():
        libraries = {re.split(r"[\[>=;<]", line)[0].replace("-", "_") for line in wanted}
        libraries = {"pynvml" if name == "nvidia_ml_py" else name for name in libraries}
        if "nanogpt_cli" in libraries:
            libraries |= {m for part in ("gguf", "onnx") for m in extras.EXTRAS[part].modules}
        assert set(extras.EXTRAS[name].modules) == libraries - {"nanogpt_cli"}


def test_an_extra_says_what_it_lacks() -> None:
    assert extras.Extra("", ("json", "no_such_library")).missing == ("no_such_library",)


def fill(home: Path) -> None:
    for name, content in {
        "assets/text.txt": b"x" * 3000,
        "data/plays-char/train.bin": b"x" * 500,
        "data/plays-char/deep/val.bin": b"x" * 500,
        "sample_history": b"x" * 7,
    }.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_the_cache_is_listed_with_sizes(nanogpt_home: Path) -> None:
    fill(nanogpt_home)
    (nanogpt_home / "link").symlink_to(ROOT)  # what lies behind a link is not ours to count
    found = json.loads(CliRunner().invoke(app, ["cache", "list", "--json"]).stdout)
    sizes = {row["name"]: row["bytes"] for row in found["entries"]}
    assert sizes.pop("link") < 1000
    assert sizes == {"text.txt": 3000, "plays-char": 1000, "sample_history": 7}
    assert "3 kB" in CliRunner().invoke(app, ["cache", "list"]).stdout


def test_clearing_takes_kinds_and_names_and_nothing_else(nanogpt_home: Path) -> None:
    fill(nanogpt_home)
    result = CliRunner().invoke(app, ["cache", "clear", "data", "text.txt", "--yes", "--json"])
    assert json.loads(result.stdout) == {"deleted": ["text.txt", "plays-char"], "bytes": 4000}
    assert [entry.name for entry in caches.entries()] == ["sample_history"]


def test_clearing_asks_or_wants_to_be_told(nanogpt_home: Path) -> None:
    fill(nanogpt_home)
    result = CliRunner().invoke(app, ["cache", "clear"])
    assert isinstance(result.exception, UserError)
    assert "--yes" in result.exception.hint
    result = CliRunner().invoke(app, ["cache", "clear", "plays-chr", "--yes"])
    assert isinstance(result.exception, UserError)
    assert "did you mean plays-char?" in result.exception.hint
    assert len(caches.entries()) == 3
