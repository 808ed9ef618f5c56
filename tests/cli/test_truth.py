"""What a run says of itself is true: refused resumes, changed recipes, divergence, NaN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
import smallest

from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.training.forecasts import room

RECIPE = smallest.recipe(
    model={"n_head": 2}, train={"max_steps": 6, "eval_every": 3, "checkpoint_every": 3}
)

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nanogpt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Program:
    """The program in this process, in a folder with a text and a recipe: (code, stdout, stderr)."""
    (tmp_path / "toy.txt").write_text("the queen slept under the tall trees\n" * 150)
    (tmp_path / "toy.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = programs.nanogpt(*arguments)
        return code, *capfd.readouterr()

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock is no part of a run's record."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def log(name: str) -> list[events.Event]:
    return EventReader(Path("runs", name, "events.jsonl")).read_all()


def test_eval_tells_the_loss_and_standard_error_that_the_run_logged(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    last = [event for event in log("toy") if isinstance(event, events.Eval)][-1]
    code, out, _ = nanogpt("eval", "--run", "toy", "--checkpoint", "last", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["loss"] == pytest.approx(last.val_loss, rel=1e-6)
    assert told["std_error"] == pytest.approx(last.std_error, rel=1e-4)
    assert told["std_error"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.n_layer=2", "model.n_layer was 1, is now 2"),
        ("model.n_head=1", "model.n_head was 2, is now 1"),
        ('model.activation="relu"', "model.activation was 'gelu', is now 'relu'"),
        ('optim.name="muon"', "optim.name was 'adamw', is now 'muon'"),
        ("run.seed=4", "run.seed was 1337, is now 4"),
        ('data.order="random"', "data.order was 'shuffle', is now 'random'"),
        ('train.device="cuda:7"', "no such device"),
        ('train.device="meta"', "not a device to train on"),
        ("data.val_fraction=0.3", "other data"),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    nanogpt: Program, change: str, said: str
) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    before = contents(Path("runs/toy"))
    code, out, error = nanogpt(
        "train", "toy", "--resume", "--set", "train.max_steps=9", "--set", change
    )
    assert (code, out) == (2, "")
    assert said in error
    assert contents(Path("runs/toy")) == before
    assert nanogpt("train", "toy", "--resume", "--set", "train.max_steps=9")[0] == 0


def test_a_recipe_changed_by_hand_is_compared_with_the_checkpoint(nanogpt: Program) -> None:
    nanogpt("train", "toy.toml")
    path = Path("runs/toy/recipe.toml")
    path.write_text(path.read_text().replace("n_head = 2", "n_head = 4"))
    code, _, error = nanogpt("train", "toy", "--resume", "--set", "train.max_steps=9")
    assert code == 2
    assert "model.n_head was 2, is now 4" in error


def test_replay_makes_no_step_of_another_recipe(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml", "--set", "optim.lr=1e30", "--set", "optim.grad_clip=0")[0]
    assert nanogpt("train", "toy.toml", "--set", "run.name=good")[0] == 0
    for run, step in (("toy", ()), ("good", ("2",))):
        assert nanogpt("replay", run, *step)[0] == (run == "toy")
        path = Path("runs", run, "recipe.toml")
        before = path.read_text()
        for old, new, said in (
            ("n_head = 2", "n_head = 4", "model.n_head was 2, is now 4"),
            ("seed = 1337", "seed = 7", "run.seed was 1337, is now 7"),
            ("n_layer = 1", "n_layer = 900", "model.n_layer was 1, is now 900"),
        ):
            path.write_text(before.replace(old, new))
            code, _, error = nanogpt("replay", run, *step)
            assert code == 2
            assert said in error
        path.write_text(before)


def test_a_folder_in_the_place_of_the_mark_leaves_the_run_as_it_was(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    mark = Path("runs/toy/checkpoints/best.json")
    mark.unlink()
    mark.mkdir()
    before = contents(Path("runs/toy"))
    code, _, error = nanogpt("train", "toy", "--resume", "--set", "train.max_steps=8")
    assert code == 2
    assert "best.json is a folder" in error
    assert contents(Path("runs/toy")) == before


def test_what_may_change_is_said(nanogpt: Program) -> None:
    nanogpt("train", "toy.toml")
    code, _, error = nanogpt(
        "train", "toy", "--resume", "--set", "train.max_steps=12", "--set", "optim.weight_decay=0.2"
    )
    assert code == 0
    assert "optim.weight_decay was 0.1, is now 0.2" in error
    assert "train.max_steps was 6, is now 12" in error
    assert "the learning rate had ended at 0.00e+00" in error
    assert "max_steps = 12" in Path("runs/toy/recipe.toml").read_text()


def test_a_mark_of_another_run_is_no_mark(nanogpt: Program) -> None:
    nanogpt("train", "toy.toml")
    nanogpt("train", "toy.toml", "--seed", "5")
    shutil.copy("runs/toy-2/checkpoints/best.json", "runs/toy/checkpoints/best.json")
    code, _, error = nanogpt("sample", "--run", "toy", "--prompt", "the", "-n", "2")
    assert code == 2
    assert "was not made for this run's checkpoint" in error
    assert nanogpt("sample", "--run", "toy", "--checkpoint", "last", "-p", "the", "-n", "2")[0] == 0
    assert nanogpt("train", "toy", "--resume", "--set", "train.max_steps=9")[0] == 0
    assert nanogpt("sample", "--run", "toy", "--prompt", "the", "-n", "2")[0] == 0


def test_a_run_that_diverges_says_so(nanogpt: Program) -> None:
    code, _, error = nanogpt(
        "train", "toy.toml", "--set", "train.max_steps=30", "--set", "optim.lr=100",
        "--set", "optim.schedule=constant", "--set", "optim.grad_clip=0",
        "--set", "optim.weight_decay=0", "--set", "optim.betas=[0.0, 0.0]",
        "--set", "train.eval_every=0",
    )  # fmt: skip
    told = log("toy")
    alarm = next(e for e in told if isinstance(e, events.Alarm) and e.kind == "divergence")
    rise = next(
        e.step for e in told if isinstance(e, events.Step) and e.loss > told_first(told) + 1
    )
    assert alarm.step <= rise + 10
    incident = next(e for e in told if isinstance(e, events.Incident))
    assert incident.kind == "divergence"
    assert code == 1
    assert "diverged after 30 steps" in error
    assert "best so far" not in error
    assert error.splitlines()[-1] == "next: nanogpt why runs/toy"
    code, out, _ = nanogpt("runs", "--json")
    assert json.loads(out)["runs"][0]["state"] == "diverged"
    code, out, _ = nanogpt("replay", "toy")
    assert "lower optim.lr" in out


def told_first(told: list[events.Event]) -> float:
    return next(e.loss for e in told if isinstance(e, events.Step))


def test_a_run_that_meets_nan_says_so_everywhere(nanogpt: Program) -> None:
    code, _, error = nanogpt(
        "train", "toy.toml", "--set", "optim.lr=1e30", "--set", "optim.warmup_steps=0",
        "--set", "optim.grad_clip=0",
    )  # fmt: skip
    assert code == 1
    incident = next(e for e in log("toy") if isinstance(e, events.Incident))
    assert f"step {incident.step} has no finite loss" in error
    assert error.splitlines()[-1] == "next: nanogpt why runs/toy"
    _, out, _ = nanogpt("runs", "--json")
    (row,) = json.loads(out)["runs"]
    assert row["non_finite_steps"] == 1
    assert [alarm["kind"] for alarm in row["alarms"]] == ["non_finite"]
    assert row["alarms"][0]["step"] == incident.step
    _, _, error = nanogpt("watch", "toy", "--json")
    assert error.splitlines()[-1] == "next: nanogpt why runs/toy"


def test_train_and_watch_agree_how_long_it_took(nanogpt: Program) -> None:
    from nanogpt_cli.tui.state.session import RunSession

    _, out, _ = nanogpt("train", "toy.toml", "--json")
    session = RunSession(RunFolder(Path("runs/toy")).path)
    session.poll(1 << 22, float("inf"))
    assert round(session.view.seconds, 2) == json.loads(out)["seconds"]


@pytest.mark.parametrize(
    "change",
    [
        "model.n_layer=1000000", "model.n_layer=4000000000000000000", "train.batch_size=100000000",
        "train.tokens_per_step=60000000000", "train.tokens_per_step=1000000000000",
        "model.dropout=0.999999", "run.seed=10000000000000000000", "model.n_embd=99999999999",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "plan", "recipe check"])
def test_numbers_beyond_reason_are_refused_at_once(
    nanogpt: Program, command: str, change: str
) -> None:
    code, _, error = nanogpt(*command.split(), "toy.toml", "--set", change)
    assert code == 2
    assert f"--set: {change.partition('=')[0]}" in error
    assert not Path("runs").exists()


def test_a_run_beyond_the_memory_is_refused_with_the_forecast(nanogpt: Program) -> None:
    code, _, error = nanogpt(
        "train", "toy.toml", "--set", "model.n_embd=65536", "--set", "model.n_layer=100",
    )  # fmt: skip
    assert code == 2
    assert "does not fit: its weights and gradients alone need 41.2 TB" in error


def test_a_micro_batch_beyond_the_memory_is_refused_with_the_forecast(
    nanogpt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda *_, **__: 800 << 20)
    sizes = ["train.batch_size=262144", f"train.tokens_per_step={262144 * 8}"]
    code, _, error = nanogpt("train", "toy.toml", *(x for s in sizes for x in ("--set", s)))
    assert code == 2
    assert "does not fit: it needs about" in error
    assert "set train.batch_size = " in error


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("init-inspect toy.toml", "--seed=99999999999999999999"),
        ("init-inspect toy.toml --input toy-char", "--seed=-1"), ("data inspect toy", "--seed=-1"),
        ("data inspect toy", "--windows=1000000000"), ("train toy.toml", "--procs=100000000"),
        ("plan toy.toml", "--procs=100000000"), ("prepare toy.txt", "--workers=100000000"),
        ("sample toy", "--threads=100000000"), ("sample toy", "--threads=-1"),
    ],
)  # fmt: skip
def test_options_beyond_reason_are_refused_at_once(
    nanogpt: Program, command: str, option: str
) -> None:
    code, out, error = nanogpt(*command.split(), option)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option.partition('=')[0]}'" in error
    assert not Path("runs").exists()


def test_replay_makes_no_steps_that_the_run_does_not_have(nanogpt: Program) -> None:
    assert nanogpt("train", "toy.toml")[0] == 0
    code, _, error = nanogpt("replay", "toy", "1000000000")
    assert code == 2
    assert "run toy has 6 steps" in error
