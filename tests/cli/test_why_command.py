"""``nanogpt why`` and what leads to it, as commands: a run whose learning rate is far too high."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
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
from nanogpt_cli.training.causes import record

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


def test_the_command_sets_what_the_recipe_in_the_folder_no_longer_says(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    """The log's recipe was tried; the one in the folder was edited afterwards."""
    run = tmp_path / "edited"
    shutil.copytree(trained[0], run)
    recipe = recipe_files.load_resolved(run / "recipe.toml")
    edited = recipe_files.from_values(
        recipe_files.overridden(
            recipe.model_dump(mode="json"), ("optim.weight_decay=0.5", "model.n_embd=64")
        ),
        "edited",
    )
    files.write_text(run / "recipe.toml", recipe_files.to_toml(edited))
    code, out, _ = nanogpt("why", run, "--json")
    words = shlex.split(json.loads(out)["fix"]["command"])
    assert code == 0
    assert f"model.n_embd={recipe.model.n_embd}" in words
    assert f"optim.weight_decay={recipe.optim.weight_decay}" in words or (
        "optim.weight_decay=0.0" in words
    )


def test_another_course_of_training_tells_nothing_about_the_runs_own(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    """As of a run that began with --from: made again it is another model."""
    run = tmp_path / "other"
    shutil.copytree(trained[0], run)
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for row in rows:
        if row["type"] == "step" and isinstance(row["loss"], float):
            row["loss"] += 1.0
    (run / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged = record.read(RunFolder(run)).layers
    code, out, _ = nanogpt("why", run, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["replay"]["differs"] == 1
    assert found["documents"] == []
    assert all(link["step"] in logged for link in found["chain"] if link["layer"] is not None)
    _, out, _ = nanogpt("why", run)
    assert "perhaps it began with other weights (train --from)" in " ".join(out.split())


def test_a_resume_from_before_the_first_step_is_refused(trained: tuple[Path, str]) -> None:
    code, _, err = nanogpt("train", trained[0], "--resume", "--before", "0")
    assert code == 2
    assert "--before" in err


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


def logged(
    folder: Path, losses: list[float], *alarms: events.Alarm, lr: float | None = None
) -> Path:
    """The folder of a run of another loop: a log without incidents, and nothing else."""
    folder.mkdir()
    with EventWriter(folder / "events.jsonl") as log:
        log(events.RunStarted(name=folder.name, vocab_size=65))
        for step, loss in enumerate(losses, 1):
            log(events.Step(step=step, loss=loss, lr=lr, grad_norm=1.0, tokens=step,
                            tokens_per_s=None))  # fmt: skip
        for alarm in alarms:
            log(alarm)
    return folder


def alarm(kind: str, *, active: bool = True, severity: str = "warning") -> events.Alarm:
    return events.Alarm(step=20, kind=kind, severity=severity, message=f"{kind} it is", advice="",
                        layer=None, active=active)  # fmt: skip


def test_a_divergence_in_another_loops_log_is_no_healthy_run(tmp_path: Path) -> None:
    run = logged(tmp_path / "loop", [4.2, 4.1, 9.0, 30.0, 50.0, 60.0, 55.0, *[20.0] * 33])
    code, out, err = nanogpt("why", run)
    said = " ".join(out.split())
    assert code == 0
    assert "divergence at step 7 (loss 55)" in said
    assert "no change was tried: there is no recipe.toml in its folder" in said
    assert err.splitlines()[-1] == f"next: nanogpt watch {run}"


@pytest.mark.parametrize("kind", ["overfitting", "split_gap", "low_loss", "frozen"])
def test_an_alarm_that_stands_is_told_though_the_loss_never_jumped(
    tmp_path: Path, kind: str
) -> None:
    run = logged(tmp_path / "stands", [3.0] * 40, alarm(kind))
    _, out, err = nanogpt("why", run)
    assert "healthy" not in out
    assert f"{kind} it is" in " ".join(out.split())
    explains = kind != "frozen"  # a layer that stands still is an event with a screen of its own
    assert ("next: nanogpt explain" in err) == explains
    _, out, _ = nanogpt("why", run, "--json")
    assert "healthy" not in json.loads(out)["verdict"]


def test_alarms_that_were_cleared_or_are_no_harm_leave_a_run_healthy(tmp_path: Path) -> None:
    over = "overfitting"
    run = logged(tmp_path / "well", [3.0] * 40, alarm(over), alarm(over, active=False),
                 alarm("slow", severity="info"))  # fmt: skip
    _, out, err = nanogpt("why", run)
    assert "looks healthy" in " ".join(out.split())
    assert "next: nanogpt watch" in err


def test_a_loss_that_stayed_in_its_band_was_preceded_by_nothing(tmp_path: Path) -> None:
    """Only a loss that left its band can have been preceded; nothing is judged by no past."""
    run = logged(tmp_path / "calm", [3.0] * 40)
    with EventWriter(run / "events.jsonl") as log:
        for step in range(1, 41):
            ratio = -3.0 if step < 30 else -1.2
            log(events.Layers(step=step, stats={"update_ratio": [ratio]}))
    _, out, _ = nanogpt("why", run, "40")
    said = " ".join(out.split())
    assert "first: update over weight, layer 0, at step 30; the loss stayed in its own band" in said
    assert "it was 10^-1.2, usually 10^-3.0" in said


def test_a_log_of_nothing_but_nan_is_drawn_without_gaps(tmp_path: Path) -> None:
    _, out, _ = nanogpt("why", logged(tmp_path / "nan", [float("nan")] * 40))
    bars = next(line for line in out.splitlines() if line.startswith("  loss "))
    assert " " not in bars[34:58].strip()
    assert "a value that is not finite at step 1" in " ".join(out.split())
