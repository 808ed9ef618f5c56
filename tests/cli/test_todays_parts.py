"""The program on a model of today's parts: every command computes it or refuses it in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import programs
import pytest
import smallest
import toy_run
from tiny import same_tensors
from toy_run import MODERN

from nanogpt_cli import files
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints import checkpoint, retention

MODEL = MODERN | {"n_head": 2, "n_embd": 16, "n_layer": 2, "block_size": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a Qwen3."""
    folder = tmp_path_factory.mktemp("modern")
    (folder / "toy.txt").write_text(toy_run.text(), encoding="utf-8")
    (folder / "mine.toml").write_text(
        smallest.recipe(
            model=MODEL,
            train={"max_steps": 6, "eval_every": 3, "checkpoint_every": 3},
            stats={"every": 2, "budget": 1.0},
            sample={"max_new_tokens": 5},
        ),
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert programs.nanogpt("train", "mine.toml") == 0
    return folder


@dataclass
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in that folder."""
    monkeypatch.chdir(place)

    def once(*words: str) -> Done:
        capsys.readouterr()
        code = programs.nanogpt(*words)
        return Done(code, *capsys.readouterr())

    return once


def test_train_writes_layers_and_samples(place: Path) -> None:
    log = (place / "runs/mine/events.jsonl").read_text(encoding="utf-8")
    kinds = {json.loads(line)["type"] for line in log.splitlines()}
    assert {"step", "layers", "eval", "sample", "checkpoint"} <= kinds


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "mine", "--prompt", "the ", "-n", "40", "--context", "slide"),
        ("sample", "mine", "--prompt", "the ", "-n", "40", "--context", "roll"),
        ("eval", "--run", "runs/mine"),
        ("replay", "mine", "5"),
        ("verify-resume", "mine.toml", "--steps", "4"),
        ("plan", "mine.toml", "--flops", "1e9"),
        ("plan", "mine.toml", "--gpu", "H200", "--set", "train.precision=bf16"),
        ("init-inspect", "mine.toml", "--coord-check", "--widths", "16,32"),
    ],
)
def test_commands_compute_it(run: Run, command: tuple[str, ...]) -> None:
    done = run(*command)
    assert done.code == 0, done.err


def test_export_import_and_fine_tuning(run: Run) -> None:
    assert run("export", "mine", "--to", "hf", "--no-verify").code == 0
    folder = Path("runs/mine/exports/hf")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
    greedy = ("--prompt", "the ", "-n", "12", "--temperature", "0")
    wrote = run("sample", "mine", *greedy).out
    assert wrote
    assert run("sample", str(folder), *greedy).out == wrote
    done = run("import", str(folder), "--name", "again", "--data", "toy.txt")
    assert done.code == 0, done.err
    imported = checkpoint.load(retention.find(RunFolder(Path("runs/again")), "last")).model
    trained = checkpoint.load(retention.find(RunFolder(Path("runs/mine")), "best")).model
    assert same_tensors(imported, trained)
    assert run("eval", "--run", "runs/again").code == 0
    tuned = run(
        "train", "runs/again/recipe.toml", "--from", "runs/again", "--set", "train.max_steps=2",
        "--set", "run.name=tuned", "--set", "optim.warmup_steps=0",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    after = checkpoint.load(retention.find(RunFolder(Path("runs/tuned")), "last")).model
    assert after.config == imported.config
    assert not same_tensors(after, trained)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("export", "mine", "--to", "nanogpt"), "nanoGPT has only GPT-2's parts"),
        (("init-inspect", "mine.toml", "--compare=normal", "--measure"), 'model.norm = "rms"'),
        (("recipe", "check", "mine.toml", "--set", "model.n_kv_head=3"), "n_kv_head = 2 would"),
        (("recipe", "check", "mine.toml", "--set", "model.n_embd=6"), 'position = "rope" turns'),
    ],
)
def test_what_is_not_computed_is_refused_in_a_line(
    run: Run, command: tuple[str, ...], said: str
) -> None:
    done = run(*command)
    assert done.code == 2, done.out + done.err
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments", [("mine.toml",), ("--from", "runs/mine"), ("mine.toml", "--theory")]
)
def test_init_inspect_knows_the_parts(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("init-inspect", *arguments, "--input", "random", "--tokens", "16", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["expected"] is None) == ("--from" in arguments)  # a start, or trained weights
    shown = found["expected"] or found["measured"]
    assert len(shown["stream_rms"]) == 3
    assert shown["loss"] > 0


@pytest.mark.parametrize(
    ("sets", "home", "said"),
    [
        ((), "qwen3", "Qwen3"),
        (("model.qk_norm=false",), "llama", "Llama"),
        (("model.norm=layer",), None, 'ours only: norm = "layer" (Qwen3 has "rms")'),
    ],
)
def test_check_and_plan_name_the_home(
    run: Run, sets: tuple[str, ...], home: str | None, said: str
) -> None:
    more = [word for text in sets for word in ("--set", text)]
    for command in (("recipe", "check", "mine.toml"), ("plan", "mine.toml", "--flops", "1e9")):
        done = run(*command, *more)
        assert done.code == 0, done.err
        (line,) = (line for line in done.out.splitlines() if line.startswith("architecture"))
        assert line.removeprefix("architecture").strip(": ") == said
        facts = json.loads(run(*command, *more, "--json").out)
        assert facts["home"] == home


def test_checkpoints_from_before_these_keys_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text(toy_run.text(), encoding="utf-8")
    (tmp_path / "old.toml").write_text(smallest.recipe(), encoding="utf-8")
    assert programs.nanogpt("train", "old.toml") == 0
    folder = tmp_path / "runs/old/checkpoints/step-000002"
    state = checkpoint.read_state(folder)
    now = checkpoint.load(folder).model
    for key in ("norm", "norm_eps", "position", "rope_theta", "qk_norm", "n_kv_head", "hidden"):
        del state["model"][key]
    files.write_json(folder / checkpoint.STATE, state)
    before = checkpoint.load(folder).model
    assert before.config == now.config
    assert before.state_dict().keys() == now.state_dict().keys()
