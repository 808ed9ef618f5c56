"""The command ``export`` from outside: paths on stdout, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_run
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import exporting, verify


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one run."""
    make_run(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments])


def test_artefacts_are_named_on_stdout(here: Path) -> None:
    pytest.importorskip("gguf")
    done = invoke("--to", "hf,nanogpt,gguf", "--quantize", "f16,q8_0", "--no-verify")
    assert done.exit_code == 0
    names = done.stdout.splitlines()
    assert names == [
        "runs/tiny/exports/hf", "runs/tiny/exports/nanogpt",
        "runs/tiny/exports/gguf/tiny-f16.gguf", "runs/tiny/exports/gguf/tiny-q8_0.gguf",
    ]  # fmt: skip
    assert all((here / name).exists() for name in names)


def test_folder_can_be_chosen_and_json_is_one_line(here: Path) -> None:
    done = invoke("tiny", "--out", "elsewhere", "--no-verify", "--json")
    assert done.exit_code == 0
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["artefacts"] == ["elsewhere/hf"]
    assert (here / "elsewhere" / "hf" / "config.json").is_file()


def test_what_was_not_run_is_said_everywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    for options in (("--no-verify",), ()):
        monkeypatch.setattr(verify, "missing", lambda artefact: "its runtime")
        done = invoke("--to", "hf,gguf", "--json", "--overwrite", *options)
        assert done.exit_code == 0
        assert "NOT VERIFIED: hf, tiny-f16.gguf: never run in" in done.stderr.replace("\n", " ")
        assert json.loads(done.stdout.splitlines()[-1])["passed"] is None
        for target in ("hf", "gguf"):
            path = here / "runs" / "tiny" / "exports" / target / "verify.json"
            assert json.loads(path.read_text())["passed"] is None


def test_what_was_not_run_is_not_uploaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(verify, "missing", lambda artefact: "its runtime")
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    done = invoke("--push", "me/tiny")
    assert isinstance(done.exception, UserError)
    assert "not verified" in done.exception.message


def test_failed_proof_is_exit_code_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    whole = exporting.export

    def broken(*arguments: Any, **options: Any) -> Any:
        artefacts = whole(*arguments, **options)
        artefacts[0].path.write_bytes(b"damaged")
        return artefacts

    monkeypatch.setattr(exporting, "export", broken)
    done = invoke("--to", "gguf", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout.splitlines()[-1])["passed"] is False


def test_other_models_can_be_exported_too(here: Path) -> None:
    assert invoke("--no-verify").exit_code == 0
    done = invoke("runs/tiny/exports/hf", "--to", "nanogpt", "--no-verify")
    assert done.exit_code == 0
    assert (here / "exports" / "tiny" / "nanogpt" / "ckpt.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "hff"), "hff"), (("missing",), "missing"), (("--checkpoint", "99"), "99"),
        (("--to", "nanogpt", "--push", "a/b"), "--push"),
        (("--to", "gguf", "--quantize", "q3_k"), "q3_k"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_are_answered(here: Path, arguments: tuple[str, ...], said: str) -> None:
    done = invoke(*arguments, "--no-verify")
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not (here / "runs" / "tiny" / "exports").exists()


@pytest.mark.parametrize(
    ("changes", "target", "said"),
    [
        ({"activation": "relu"}, "nanogpt", "'relu'"), ({"tied": False}, "nanogpt", "ties"),
        ({"activation": "relu2"}, "gguf", "'relu2'"), ({"activation": "swiglu"}, "onnx", "swiglu"),
        ({"activation": "swiglu"}, "hf", "swiglu"),
    ],
    ids=str,
)  # fmt: skip
def test_a_format_that_lacks_something_is_refused_before_others_are_written(
    here: Path, changes: dict[str, Any], target: str, said: str
) -> None:
    for package in exporting.TARGETS[target].packages:
        pytest.importorskip(package)
    make_run(here / "runs" / "special", **changes)
    done = invoke("special", "--to", f"pt2,{target}", "--no-verify")
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not (here / "runs" / "special" / "exports").exists()


def test_damaged_foreign_model_is_refused(here: Path) -> None:
    invoke("--no-verify")
    path = here / "runs" / "tiny" / "exports" / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("ln_f.weight")
    save_file(tensors, path)
    done = invoke("runs/tiny/exports/hf", "--to", "nanogpt", "--no-verify")
    assert isinstance(done.exception, UserError)
