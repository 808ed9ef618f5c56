"""``nanogpt why`` and what leads to it, as commands: a run whose learning rate is far too high."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path

import programs
import pytest
import toy_run

from nanogpt_cli import files
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.log import EventWriter

STEPS = 70


def nanogpt(*words: object) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = programs.nanogpt(*map(str, words))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that went wrong, and what ``train`` said on stderr."""
    folder = tmp_path_factory.mktemp("why")
    data = toy_run.data(folder)
    recipe = toy_run.recipe(
        run={"name": "high"}, data={"name": str(data.folder)},
        optim={"lr": 3.0, "warmup_steps": 0, "grad_clip": 0.0},
        train={"max_steps": STEPS, "eval_every": 0, "checkpoint_every": 30}, stats={"every": 5},
    )  # fmt: skip
    path = folder / "high.toml"
    files.write_text(path, recipe_files.to_toml(recipe))
    code, _, said = nanogpt("train", path, "--out", folder / "runs")
    assert code in (0, 1), said
    return folder / "runs" / "high", said


def test_training_that_had_an_incident_points_to_why(trained: tuple[Path, str]) -> None:
    run, said = trained
    log = EventReader(RunFolder(run).events).read_all()
    assert any(isinstance(event, events.Incident) for event in log)
    assert said.splitlines()[-1].startswith("next: nanogpt why ")


def test_one_screen_answers_in_lines_that_fit_80_columns(trained: tuple[Path, str]) -> None:
    code, out, err = nanogpt("why", trained[0])
    assert code == 0
    lines = out.splitlines()
    for heading in ("What happened", "The steps made again", "Which change cures it",
                    "Which documents", "What to type"):  # fmt: skip
        assert heading in lines
    paths = (str(trained[0]), "toy.txt")  # a path is not broken
    assert [x for x in lines if len(x) > 80 and not any(path in x for path in paths)] == []
    assert "each loss with the bits of the log" in out
    assert err.splitlines()[-1].removeprefix("next: ") == lines[-1].strip()


def test_json_says_the_same_and_the_command_can_be_run(trained: tuple[Path, str]) -> None:
    code, out, err = nanogpt("why", trained[0], "--json")
    found = json.loads(out)
    assert code == 0
    assert found["fix"]["command"] == err.splitlines()[-1].removeprefix("next: ")
    words = shlex.split(found["fix"]["command"])[1:]
    code, _, said = nanogpt(*words, "--set", "train.max_steps=2", "--out", trained[0].parent)
    assert code == 0, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0"], "[STEP]"), (["71"], "no step 71"), (["x"], "[STEP]"),
        (["3", "--budget", "soon"], "--budget"), (["3", "--budget", "-1s"], "--budget"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_is_one_line(
    trained: tuple[Path, str], words: list[str], said: str
) -> None:
    code, out, err = nanogpt("why", trained[0], *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_the_step_of_a_lasting_alarm_is_explained_as_that(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "sat")
    run.path.mkdir()
    with EventWriter(run.events) as log:
        log(events.RunStarted(name="sat", vocab_size=65))
        for step in range(1, 41):
            log(events.Step(step=step, loss=3.0, lr=1e-3, grad_norm=1.0, tokens=step,
                            tokens_per_s=None))  # fmt: skip
        log(events.Alarm(step=30, kind="attention_logits", severity="warning", message="m",
                         advice="", layer=1))  # fmt: skip
    code, out, _ = nanogpt("why", run.path, "30")
    assert code == 0
    assert "attention logits at step 30" in " ".join(out.split())


def test_a_repeated_step_that_went_well_is_no_incident(tmp_path: Path) -> None:
    """After a resume from before the incident, the advice is no longer to ask why."""
    run = RunFolder(tmp_path / "back")
    (run.checkpoints / "step-000010").mkdir(parents=True)
    with EventWriter(run.events) as log:
        for start, bad in ((0, True), (10, False)):
            log(events.RunStarted(name="back", step=start))
            for step in range(start + 1, 21):
                log(events.Step(step=step, loss=3.0, lr=1e-3, grad_norm=1.0, tokens=step,
                                tokens_per_s=None))  # fmt: skip
            if bad:
                log(events.Incident(step=15, kind="loss_spike", message="m"))
        log(events.RunEnded(step=20, reason="finished"))
    from nanogpt_cli.cli import advice

    assert advice.after(run, "finished").startswith("nanogpt sample")
    with EventWriter(run.events) as log:
        log(events.Incident(step=20, kind="loss_spike", message="m"))
    assert advice.after(run, "finished").startswith("nanogpt why")
