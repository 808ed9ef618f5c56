"""``nanogpt bench race``: both programs run to their ends, both models evaluated alike."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli import schemes
from nanogpt_cli.bench import race
from nanogpt_cli.cli import app, shapes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.interop import nanogpt, source
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.text import prepare
from nanogpt_cli.text.tokens import open_data
from nanogpt_cli.training import spec

SETS = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=2", "train.max_steps=3", "optim.warmup_steps=1", "sample.max_new_tokens=0",
)  # fmt: skip
# Ends as nanoGPT's train.py would, with a checkpoint made before.
STAND_IN = """
import json, pathlib, shutil, sys
given = dict(argument[2:].split("=", 1) for argument in sys.argv[2:])
given["config"] = sys.argv[1]
pathlib.Path("told.json").write_text(json.dumps(given))
pathlib.Path(given["out_dir"]).mkdir(parents=True)
shutil.copy("made/ckpt.pt", given["out_dir"])
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 200)
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "train.py").write_text(STAND_IN)
    return folder


def command(*more: str) -> list[str]:
    sets = [word for setting in (*SETS, "data.name=text.txt") for word in ("--set", setting)]
    return ["bench", "race", "--recipe", "debug", *sets, *more]


def test_both_end_and_are_evaluated_on_the_whole_split(checkout: Path) -> None:
    recipe = recipe_files.load("debug", [*SETS, "data.name=text.txt"]).recipe
    data = open_data(
        prepare.ensure({"name": "text.txt", "tokenizer": "char"}, report=lambda _: None)
    )
    model = drawing.build(spec.model_config(recipe, data.vocab_size), schemes.get("gpt2"), seed=5)
    (checkout / "made").mkdir()
    nanogpt.write(source.from_model(model, None), checkout / "made", lambda _: None)
    result = CliRunner().invoke(app, command("--against", str(checkout), "--target", "9", "--json"))
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    facts = json.loads(line)
    assert set(facts) == set(shapes.SHAPES["bench race"])
    words = shlex.split(result.stderr.splitlines()[-1])
    assert words[:4] == ["next:", "nanogpt", "train", "debug"]
    assert words[4:] == ["--set", "train.device=cpu", *command()[4:]]
    assert [lap["name"] for lap in facts["laps"]] == ["nanogpt train", "nanoGPT", "nanogpt train"]
    first, theirs, second = facts["laps"]
    assert theirs["val_loss"] == pytest.approx(race._loss(model, data))
    assert first["val_loss"] == second["val_loss"] != theirs["val_loss"]
    assert facts["ratio"] == pytest.approx(
        (first["seconds"] + second["seconds"]) / 2 / theirs["seconds"]
    )
    assert (first["tokens"], first["reached"]) == (3 * 2 * 16, True)
    told = json.loads((checkout / "told.json").read_text())
    assert told["config"] == "config/train_shakespeare_char.py"
    assert (told["max_iters"], told["n_embd"], told["device"]) == ("2000", "128", "cpu")


def test_a_loss_out_of_reach_is_said(checkout: Path) -> None:
    shutil.rmtree(checkout)
    result = CliRunner().invoke(app, command("--target", "0.1"))
    assert result.exit_code == 0, result.output
    assert "not reached" in result.stdout
    with pytest.raises(UserError, match=r"train\.py does not exist"):
        CliRunner().invoke(app, command("--against", str(checkout)), catch_exceptions=False)


def test_a_program_that_fails_is_said_with_its_last_words(checkout: Path) -> None:
    (checkout / "train.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(UserError, match="nanoGPT failed") as error:
        CliRunner().invoke(app, command("--against", str(checkout)), catch_exceptions=False)
    assert "no such thing" in str(error.value.hint)
