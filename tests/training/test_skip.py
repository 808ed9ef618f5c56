"""``--before`` and ``--skip-step``: an earlier checkpoint, an update left out, and both kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy_run
from toy_run import of_type, recipe

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.checkpoints import retention
from nanogpt_cli.training.drive import drive, newest_checkpoint
from nanogpt_cli.training.trainer import Trainer


def begun(tmp_path: Path, steps: int = 6) -> tuple[RunFolder, TokenData]:
    """A run that was stopped after some steps; its checkpoints are those of steps 4 and 6."""
    run, data = toy_run.folder(tmp_path / "run"), toy_run.data(tmp_path)
    files.write_text(run.recipe, recipe_files.to_toml(recipe()))
    go_on(run, data, until=steps, resume=False)
    return run, data


def go_on(
    run: RunFolder,
    data: TokenData,
    *,
    until: int,
    resume: bool = True,
    skip: tuple[int, ...] = (),
    killed: bool = False,
) -> list[events.Event]:
    """Train to a step; ``killed`` ends there at once, without a checkpoint."""
    asked: list[bool] = []

    def start() -> Trainer:
        found = newest_checkpoint(run, lambda _: None) if resume else None
        return Trainer(
            recipe(), data, run, checkpoint=found, skip=skip, should_stop=lambda: bool(asked)
        )

    found = []
    for event in drive(run, recipe(), start, resume=resume):
        found.append(event)
        if isinstance(event, events.Step) and event.step == until:
            asked.append(True)
            if killed:
                break
    return found


def steps_of(found: list[events.Event]) -> dict[int, events.Step]:
    return {event.step: event for event in of_type(found, events.Step)}


def test_a_step_is_left_out_logged_and_saved(tmp_path: Path) -> None:
    run, data = begun(tmp_path)
    made = go_on(run, data, until=12, skip=(8,))
    assert [e.step for e in of_type(made, events.Step) if e.skipped] == [8]
    (said,) = [e for e in of_type(made, events.Command) if e.name == "skip-step"]
    assert (said.step, said.argument) == (6, "8")
    # A new trainer that left the same update out makes the same losses.
    twin = toy_run.losses(toy_run.run(Trainer(recipe(), data, skip=[8])))
    assert {s: e.loss for s, e in steps_of(made).items()} == {s: twin[s] for s in range(7, 13)}
    without = toy_run.losses(toy_run.run(Trainer(recipe(), data)))
    assert without[8] == twin[8]
    assert without[9] != twin[9]


def test_it_is_remembered_by_a_run_that_died_before_its_next_checkpoint(tmp_path: Path) -> None:
    run, data = begun(tmp_path)
    go_on(run, data, until=7, skip=(10,), killed=True)
    assert retention.list_steps(run)[-1] == 6
    made = steps_of(go_on(run, data, until=12))  # nobody asks again
    assert [step for step, event in made.items() if event.skipped] == [10]


@pytest.mark.parametrize(("step", "says"), [(6, "resumes after step 6"), (13, "has 12 steps")])
def test_a_step_that_cannot_be_left_out_is_refused(tmp_path: Path, step: int, says: str) -> None:
    run, data = begun(tmp_path)
    before = run.events.read_bytes()
    with pytest.raises(UserError, match=says):
        go_on(run, data, until=12, skip=(step,))
    assert run.events.read_bytes() == before


def test_an_earlier_checkpoint_is_taken_and_later_ones_are_set_aside(tmp_path: Path) -> None:
    run, _ = begun(tmp_path)
    assert retention.list_steps(run) == [4, 6]
    assert newest_checkpoint(run, lambda _: None, 6).name == "step-000004"
    assert retention.list_steps(run) == [4, 6]  # choosing changes nothing
    (undone,) = retention.undo_after(run, 4)
    assert undone.name == "undone-step-000006"
    assert retention.list_steps(run) == [4]
    with pytest.raises(UserError, match="no intact checkpoint before step 3; there are: 4"):
        newest_checkpoint(run, lambda _: None, 3)
