"""The command ``export`` from outside: paths on stdout, exit codes, JSON."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from programs import nanogpt
from safetensors.torch import load_file, save_file
from tiny import make_model, make_run
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import exporting, verify
from nanogpt_cli.interop.source import from_model


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
def test_a_format_that_lacks_something_is_refused_and_the_others_are_written(
    here: Path, changes: dict[str, Any], target: str, said: str
) -> None:
    for package in exporting.TARGETS[target].packages:
        pytest.importorskip(package)
    make_run(here / "runs" / "special", **changes)
    exports = here / "runs" / "special" / "exports"
    alone = invoke("special", "--to", target, "--no-verify")
    assert isinstance(alone.exception, UserError)
    assert said in alone.exception.message
    assert not exports.exists()
    done = invoke("special", "--to", f"{target},pt2", "--no-verify", "--json")
    assert isinstance(done.exception, UserError)
    assert done.exception.message == f"{target} is not exported: {alone.exception.message}"
    assert done.exception.hint == alone.exception.hint
    assert [path.name for path in exports.iterdir()] == ["pt2"]
    answer = json.loads(done.stdout)
    assert len(answer["artefacts"]) == 1
    assert answer["not_exported"] == {target: str(alone.exception)}


def test_the_rest_is_one_command_after_the_installation(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = exporting.TARGETS["gguf"]
    monkeypatch.setitem(exporting.TARGETS, "gguf", exporting.Target("", ("no_such_lib",), "gguf"))
    words = ["--to", "gguf,nanogpt", "--out", "my exports", "--no-verify", "--raw"]
    assert nanogpt("export", *words) == 2
    said = capsys.readouterr().err
    assert "gguf is not exported: --to gguf needs the package no_such_lib" in said
    assert [path.name for path in (here / "my exports").iterdir()] == ["nanogpt"]
    monkeypatch.setitem(exporting.TARGETS, "gguf", ready)
    again = re.search("then `nanogpt ([^`]*)`", said)
    assert again
    expected = ["export", "runs/tiny", "--to", "gguf", "--out", "my exports", "--raw"]
    assert shlex.split(again[1]) == [*expected, "--no-verify"]
    pytest.importorskip("gguf")
    assert CliRunner().invoke(app, shlex.split(again[1])).exit_code == 0
    assert (here / "my exports" / "gguf" / "tiny-f16.gguf").is_file()


def test_failed_proof_is_exit_code_one_beside_an_impossible_target(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting.TARGETS, "gguf", exporting.Target("", ("no_such_lib",), "gguf"))
    monkeypatch.setattr(verify, "_same_tensors", lambda *_: False)
    done = invoke("--to", "nanogpt,gguf")
    assert done.exit_code == 1
    assert "gguf is not exported: --to gguf needs the package no_such_lib" in done.stderr


def test_imported_model_without_tokenizer_is_told_how_to_get_one(here: Path) -> None:
    source = from_model(make_model(n_layer=1), None, "plain")
    exporting.export(source, "hf", here / "made", lambda line: None)
    assert CliRunner().invoke(app, ["import", "made/hf", "--name", "bare"]).exit_code == 0
    done = invoke("bare", "--to", "hf,gguf", "--no-verify")
    assert "next: nanogpt init-inspect --from runs/bare/exports/hf" in done.stderr
    sampled = CliRunner().invoke(app, ["sample", "bare"])
    for result in (done, sampled):
        assert isinstance(result.exception, UserError)
        assert "`nanogpt import made/hf --tokenizer FILE`" in result.exception.hint
    again = ["import", "made/hf", "--tokenizer", "runs/tiny", "--name", "whole"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert CliRunner().invoke(app, ["sample", "whole", "-n", "2"]).exit_code == 0


def test_damaged_foreign_model_is_refused(here: Path) -> None:
    invoke("--no-verify")
    path = here / "runs" / "tiny" / "exports" / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("ln_f.weight")
    save_file(tensors, path)
    done = invoke("runs/tiny/exports/hf", "--to", "nanogpt", "--no-verify")
    assert isinstance(done.exception, UserError)
