"""``nanogpt bench train`` and ``bench startup``: turns, translation, tables, history."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli.bench import growth as bench_growth
from nanogpt_cli.bench import startup, turns
from nanogpt_cli.cli import app, shapes
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.text import prepare
from nanogpt_cli.text.tokens import open_data
from nanogpt_cli.training.studies import growth

TINY = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=2",
)  # fmt: skip
# Speaks like nanoGPT's train.py, and notes what it was told. One step is 2 ms of work.
STAND_IN = """
import json, pathlib, sys, time
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
tokens = pathlib.Path(given["dataset"])
given["vocab"] = (tokens / "meta.pkl").read_bytes().hex()
given["bytes"] = (tokens / "train.bin").stat().st_size
pathlib.Path("told.json").write_text(json.dumps(given))
print("found vocab_size")
number = 0
while True:
    start = time.perf_counter()
    while time.perf_counter() - start < 0.002:
        pass
    print(f"iter {number}: loss 1.2345, time {1e3 * (time.perf_counter() - start):.2f}ms, mfu -1%")
    number += 1
"""


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text("To be, or not to be: that is the question.\n" * 200)
    return file


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops processes")
def test_turns_with_a_checkout(text: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "train.py").write_text(STAND_IN)
    command = ["bench", "train", "--recipe", "debug", "--against", str(checkout)]
    command += ["--turns", "2", "--seconds", "0.2", "--out", "history.jsonl"]
    for setting in (*TINY, f"data.name={text}"):
        command += ["--set", setting]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert set(facts) == set(shapes.SHAPES["bench train"])
    mine, theirs = facts["loops"]
    assert (mine["name"], theirs["name"]) == ("nanogpt train", "nanoGPT")
    assert facts["ratio"] == pytest.approx(theirs["step_s"] / mine["step_s"])
    assert theirs["step_s"] >= 0.002
    assert len(theirs["turn_medians_s"]) == 2
    assert facts["optimizer"] == "adamw"
    assert facts["peak_flops"] is None
    assert facts["matmul_flops"] > 0
    assert json.loads(Path("history.jsonl").read_text())["loops"] == facts["loops"]
    told = json.loads((checkout / "told.json").read_text())
    assert (told["n_embd"], told["block_size"], told["device"]) == ("16", "16", "cpu")
    data = {"name": str(text), "tokenizer": "char"}
    folder = prepare.ensure(data, report=lambda _: None)
    assert told["bytes"] == 2 * open_data(folder).manifest.train.tokens


def test_a_loop_that_ends_is_said_with_its_last_words(text: Path, tmp_path: Path) -> None:
    recipe = recipe_files.load("debug", TINY).recipe
    (tmp_path / "train.py").write_text("raise SystemExit('no such luck')")
    with (
        turns.nanogpt(tmp_path, recipe, tmp_path, 65, tmp_path, []) as loop,
        pytest.raises(UserError) as failed,
    ):
        loop.warm_up()
    assert failed.value.hint == "no such luck"


def test_without_a_checkout_it_is_refused(tmp_path: Path) -> None:
    recipe = recipe_files.load("debug").recipe
    with (
        pytest.raises(UserError, match=r"train\.py does not exist"),
        turns.nanogpt(tmp_path / "nosuch", recipe, tmp_path, 65, tmp_path, []),
    ):
        pass


def test_accumulation_is_translated() -> None:
    recipe = recipe_files.load("gpt2-124m-nanogpt").recipe
    assert "--gradient_accumulation_steps=40" in turns.nanogpt_arguments(recipe)


def test_growth_varies_one_key_at_a_time_at_equal_tokens_for_contexts() -> None:
    recipe = recipe_files.load("small", ["train.batch_size=12"]).recipe
    rows = bench_growth.shapes(recipe)
    contexts = [changes for kind, _, _, changes in rows if kind == "context"]
    sizes = [c["model"]["block_size"] * c["train"]["batch_size"] for c in contexts]
    assert sizes == [768] * 4
    assert {kind for kind, *_ in rows} == {"context", "depth", "batch", "width"}


def test_growth_measures_pace_and_checkpoints(text: Path) -> None:
    recipe = recipe_files.load("debug", TINY).recipe
    folder = prepare.ensure({"name": str(text), "tokenizer": "char"}, report=lambda _: None)
    data = open_data(folder)
    found = growth.pace(recipe, data, seconds=0)
    assert found["tokens_per_s"] > 0
    assert found["peak_bytes"] > 1 << 20
    saved = growth.checkpoint_seconds(recipe, data, repeats=1)
    assert saved["bytes"] > 3 * 4 * found["parameters"]  # weights and two moments in float32


def test_startup_is_judged_beyond_the_import_of_torch() -> None:
    times = {
        "nanogpt --help": [0.2, 0.1, 0.4], "nanogpt recipes": [0.6], "import torch": [1.0],
        "nanogpt train": [2.5],
    }  # fmt: skip
    result = startup._result(times, load=0.0)
    assert result["seconds"]["to the first step"] == pytest.approx(1.5)
    assert result["within"] == {
        "nanogpt --help": True, "nanogpt recipes": False, "to the first step": True,
    }  # fmt: skip
