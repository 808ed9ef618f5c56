"""The command ``import``: a run that the other commands can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    TEXT,
    char_tokenizer,
    exportable,
    make_model,
    quiet,
    same_tensors,
    write_llmc,
)
from typer.testing import CliRunner

from nanogpt_cli import recipe_files
from nanogpt_cli.cli import app
from nanogpt_cli.core import checkpoint, retention
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface, nanogpt, source
from nanogpt_cli.runlog import RunFolder, find_run
from nanogpt_cli.text import bpe
from nanogpt_cli.text import tokenizer as tokenizers


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["import", *arguments])


def test_huggingface_folder_becomes_a_run() -> None:
    found = exportable(activation="gelu_tanh", bias=False)
    Path("my-model").mkdir()
    huggingface.write(found, Path("my-model"), quiet)
    done = invoke("my-model")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "runs/my-model"
    run = find_run("my-model")
    loaded = checkpoint.load(retention.find(run))
    assert same_tensors(loaded.model, found.model())
    assert loaded.model.config.activation == "gelu_tanh"
    recipe = recipe_files.load(run.recipe).recipe
    assert (recipe.model.n_layer, recipe.model.bias) == (2, False)
    assert recipe.data.tokenizer == "char"
    assert recipe.optim.lr < 1e-4  # it is trained already
    assert (
        source.from_run(run).require_tokenizer("x").fingerprint() == char_tokenizer().fingerprint()
    )


def test_second_import_gets_a_number_and_json_names_it() -> None:
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    assert invoke("hf", "--name", "a").exit_code == 0
    done = invoke("hf", "--name", "a", "--json")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["run"] == "runs/a-2"
    assert answer["model"]["n_layer"] == 2


def test_nanogpt_checkpoint_with_its_vocabulary() -> None:
    folder = Path("out")
    folder.mkdir()
    found = exportable()
    nanogpt.write(found, folder, quiet)
    (folder / "tokenizer.json").unlink()
    (meta,) = folder.glob("data/*/meta.pkl")
    meta.rename("meta.pkl")
    assert invoke("out/ckpt.pt", "--meta", "meta.pkl").exit_code == 0
    loaded = source.from_run(find_run("out"))
    assert same_tensors(loaded.model(), found.model())


def test_own_vocabulary_travels_with_the_run() -> None:
    tokenizer = bpe.train(280, [TEXT])
    Path("model").mkdir()
    huggingface.write(exportable(tokenizer), Path("model"), quiet)
    assert invoke("model").exit_code == 0
    run = find_run("model")
    named = recipe_files.load(run.recipe).recipe.data.tokenizer
    assert tokenizers.load(Path(named)).fingerprint() == tokenizer.fingerprint()


def test_llmc_file_needs_a_tokenizer_when_it_is_not_gpt2() -> None:
    path = write_llmc(Path("small.bin"), make_model(activation="gelu_tanh", vocab_size=65))
    tokenizers.save(char_tokenizer(), Path("tokenizer.json"))
    assert invoke(str(path), "--tokenizer", "tokenizer.json").exit_code == 0
    found = source.from_run(RunFolder(Path("runs/small")))
    assert found.weights.original.activation == "gelu_tanh"
    assert found.tokenizer is not None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"PK nothing", "not a readable PyTorch file"),
        ("a.bin", b"1234", "not a checkpoint"), ("a.txt", b"text", "not a"),
        ("missing.pt", None, "no missing.pt"),
    ],
)  # fmt: skip
def test_other_files_are_refused_and_leave_no_run(
    name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    done = invoke(name)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not Path("runs").exists()


def test_tokenizer_larger_than_the_model_leaves_no_run() -> None:
    torch.manual_seed(0)
    path = write_llmc(Path("m.bin"), make_model(activation="gelu_tanh", vocab_size=65))
    done = invoke(str(path), "--tokenizer", "byte")
    assert isinstance(done.exception, UserError)
    assert "256" in str(done.exception)
    assert not Path("runs").exists()


def test_eval_uses_the_data_the_import_names() -> None:
    Path("text.txt").write_text(TEXT * 20, encoding="utf-8", newline="")
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    assert invoke("hf", "--name", "a", "--data", "text.txt").exit_code == 0
    done = CliRunner().invoke(app, ["eval", "a", "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] > 0


def test_a_run_is_no_foreign_checkpoint() -> None:
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    assert invoke("hf", "--name", "a").exit_code == 0
    done = invoke("runs/a")
    assert isinstance(done.exception, UserError)
    assert "is a run already" in done.exception.message


def test_a_folder_without_a_tokenizer_says_so() -> None:
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("hf", name).unlink()
    assert "no tokenizer found" in invoke("hf", "--name", "a").stderr
