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

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface, nanogpt, source
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.folder import RunFolder, find_run
from nanogpt_cli.text.tokenizers import bpe, factory
from nanogpt_cli.training.checkpoints import checkpoint, retention


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def invoke(*arguments: str) -> Any:
    return call("import", *arguments)


def test_huggingface_folder_becomes_a_run() -> None:
    found = exportable(activation="gelu_tanh", bias=False)
    Path("my-model").mkdir()
    huggingface.write(found, Path("my-model"), quiet)
    done = invoke("my-model")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "runs/my-model"
    run = find_run("my-model")
    (row,) = json.loads(call("runs", "--json").stdout)["runs"]
    assert (row["state"], row["parameters"]) == ("imported", found.model().n_parameters())
    assert "imported: from my-model" in call("watch", "my-model", "--once").stdout
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
    assert factory.load(Path(named)).fingerprint() == tokenizer.fingerprint()


def test_llmc_file_needs_a_tokenizer_when_it_is_not_gpt2() -> None:
    path = write_llmc(Path("small.bin"), make_model(activation="gelu_tanh", vocab_size=65))
    factory.save(char_tokenizer(), Path("tokenizer.json"))
    assert invoke(str(path), "--tokenizer", "tokenizer.json").exit_code == 0
    found = source.from_run(RunFolder(Path("runs/small")))
    assert found.weights.original.activation == "gelu_tanh"
    assert found.tokenizer is not None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"PK nothing", "not a readable PyTorch file"),
        ("a.bin", b"1234", "not a checkpoint"), ("a.txt", b"text", "not a"),
        ("missing.pt", None, "missing.pt does not exist"),
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


def test_the_options_with_which_the_data_was_prepared_are_taken_over() -> None:
    Path("chats.jsonl").write_text((json.dumps({"talk": TEXT}) + "\n") * 9)
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    assert call("prepare", "chats.jsonl", "-t", "byte", "--text-field", "talk").exit_code == 0
    assert invoke("hf", "--name", "a", "--data", "chats.jsonl").exit_code == 0
    found = recipe_files.load("runs/a/recipe.toml").recipe.data
    assert (found.name, found.text_field, found.tokenizer) == ("chats.jsonl", "talk", "char")
    assert call("eval", "a").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--data", "nowhere.txt", "no data set or file is called 'nowhere.txt'"),
        ("--name", "a/b", "choose another name: --name NAME"),
    ],
)
def test_data_and_name_are_checked_before_a_model_is_read(
    option: str, value: str, said: str
) -> None:
    done = invoke("nowhere/model", option, value)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not Path("runs").exists()


def test_a_run_is_no_foreign_checkpoint() -> None:
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    assert invoke("hf", "--name", "a").exit_code == 0
    done = invoke("runs/a")
    assert isinstance(done.exception, UserError)
    assert "is a run already" in done.exception.message


def bpe_folder(name: str = "model") -> Path:
    Path(name).mkdir()
    huggingface.write(exportable(bpe.train(280, [TEXT])), Path(name), quiet)
    return Path(name)


BROKEN = {
    "empty": b"",
    "cut off": b'{"model": {"type": "BPE", "vocab": {"a',
    "an empty object": b"{}",
    "a list": b"[]",
    "no model": b'{"model": null}',
    "half a surrogate pair": b'{"model":{"type":"BPE","vocab":{"\\ud83d":0},"merges":[]}}',
    "a merge of absent tokens": b'{"model":{"type":"BPE","vocab":{"a":0},"merges":["b c"]}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_tokenizer_is_not_left_out_in_silence(content: bytes) -> None:
    path = bpe_folder() / "tokenizer.json"
    path.write_bytes(content)
    done = invoke("model")
    assert isinstance(done.exception, UserError)
    assert done.exception.message.startswith(str(path))
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_something_else_under_its_name_is_no_absent_tokenizer(name: str, kind: str) -> None:
    folder = bpe_folder()
    (folder / "tokenizer.json").unlink()
    if kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("nowhere")
    done = invoke("model")
    assert isinstance(done.exception, UserError)
    assert str(folder) in done.exception.message
    assert not Path("runs").exists()


def test_one_of_the_two_older_files_is_missing() -> None:
    folder = bpe_folder()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 0}')
    done = invoke("model")
    assert isinstance(done.exception, UserError)
    assert "merges.txt" in done.exception.message


@pytest.mark.parametrize("name", ["tokenizer.json", "meta.pkl"])
def test_a_broken_vocabulary_beside_a_nanogpt_checkpoint_is_refused(name: str) -> None:
    Path("out").mkdir()
    nanogpt.write(exportable(), Path("out"), quiet)
    Path("out/tokenizer.json").unlink()
    for content in (b"{", None):
        path = Path("out", name)
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere") if content is None else path.write_bytes(content)
        done = invoke("out")
        assert isinstance(done.exception, UserError)
        assert str(path) in done.exception.message
        assert not Path("runs").exists()


def test_another_tokenizer_takes_the_place_of_a_broken_one() -> None:
    factory.save(bpe.train(280, [TEXT]), Path("other.json"))
    (bpe_folder() / "tokenizer.json").write_bytes(b"{")
    done = invoke("model", "--tokenizer", "other.json")
    assert done.exit_code == 0, done.exception
    found = source.from_run(find_run("model")).require_tokenizer("x")
    assert found.fingerprint() == factory.load(Path("other.json")).fingerprint()


@pytest.mark.parametrize("end", [50256, -1, None, "x", True, [3, 4], 3.5, {}])
def test_end_of_text_outside_the_vocabulary_is_not_taken_over(end: object) -> None:
    folder = bpe_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": end}))
    found = invoke("model")
    assert found.exit_code == 0
    assert ("end-of-text id 50256" in found.stderr) == (end == 50256)
    imported = source.from_run(find_run("model")).require_tokenizer("x")
    assert imported.eot == 0
    # The token that the tokenizer's own configuration names comes before the usual names.
    path = folder / "tokenizer_config.json"
    name = imported.decode([70])
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": {"content": name}}))
    assert invoke("model", "--name", "named").exit_code == 0
    assert source.from_run(find_run("named")).require_tokenizer("x").eot == 70


def test_a_folder_without_a_tokenizer_says_so() -> None:
    Path("hf").mkdir()
    huggingface.write(exportable(), Path("hf"), quiet)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("hf", name).unlink()
    said = invoke("hf", "--name", "a").stderr
    assert "no tokenizer found" in said
    assert said.splitlines()[-1] == "next: nanogpt init-inspect --from runs/a"  # sample cannot
