"""What a call of ``nanogpt train`` is to do: begin a run, resume one, or restart one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.run import addresses
from nanogpt_cli.run.folder import RunFolder

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe
    from nanogpt_cli.recipe.files import Loaded
    from nanogpt_cli.text.proof.certificate import Certificate
    from nanogpt_cli.training.starting import Start


@dataclass(frozen=True)
class Request:
    """The options of one call.

    Attributes:
        name: of the recipe; with ``resume`` of the run, "" for the newest.
        sets: overrides ``KEY=VALUE``, those of ``--seed`` and ``--device`` included.
        out: the folder of runs.
        resume: continue an earlier run.
        source: the model to begin with, or "".
        new_tokens: draw the token embeddings of ``source`` anew.
        folder: the run folder that another process has made, or "".
        processes: that share each step.
        certify: prove first that the validation tokens are the bytes of their source.
        before: with ``resume``, go on from the newest checkpoint before this step; 0: the newest.
        skip: steps (from 1) whose update is left out.
    """

    name: str
    sets: tuple[str, ...] = ()
    out: Path = RUNS
    resume: bool = False
    source: str = ""
    new_tokens: bool = False
    folder: str = ""
    processes: int = 1
    certify: bool = False
    before: int = 0
    skip: tuple[int, ...] = ()

    def words(self, *more: str) -> list[object]:
        """The words of the command that asks for the same, with more overrides."""
        words: list[object] = ["train", self.name, *shell.settings([*self.sets, *more])]
        words += ["--resume"] if self.resume else []
        words += ["--from", self.source] if self.source else []
        words += ["--new-tokens"] if self.new_tokens else []
        words += ["--certify"] if self.certify else []
        words += self.going_on()
        words += [] if self.out == RUNS else ["--out", self.out]
        return words + (["--procs", self.processes] if self.processes > 1 else [])

    def going_on(self) -> list[object]:
        """The words that say where to go on and which updates to leave out."""
        words: list[object] = ["--before", self.before] if self.before else []
        return words + [word for step in self.skip for word in ("--skip-step", step)]


@dataclass(frozen=True)
class Job:
    """A recipe, its prepared data and its run folder.

    Attributes:
        recipe: resolved.
        data: folder of the prepared set.
        run: the run folder, which exists.
        resume: continue from the newest intact checkpoint.
        source: the model to begin with, or "".
        new_tokens: draw its token embeddings anew.
        before, skip: as of ``Request``.
        made_here: this process has made the run folder, and removes it if the run cannot begin.
        start: the model itself, where it is loaded already.
        proof: of the validation split's bytes, with ``--certify``, where it was made already.
    """

    recipe: Recipe
    data: Path
    run: RunFolder
    resume: bool
    source: str = ""
    new_tokens: bool = False
    before: int = 0
    skip: tuple[int, ...] = ()
    made_here: bool = False
    start: Start | None = field(default=None, compare=False)
    proof: Certificate | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON values, for the other processes."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": str(self.data.absolute()),
            "run": str(self.run.path.absolute()),
            "resume": self.resume,
            "source": self.source,
            "new_tokens": self.new_tokens,
            "before": self.before,
            "skip": list(self.skip),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        from nanogpt_cli.recipe import files as recipe_files

        recipe = recipe_files.from_values(values["recipe"])
        run = RunFolder(Path(values["run"]))
        return cls(
            recipe, Path(values["data"]), run, values["resume"], values["source"],
            values["new_tokens"], values["before"], tuple(values["skip"]),
        )  # fmt: skip

    def loaded(self) -> Start | None:
        """The model to begin with.

        Raises:
            UserError: there is no such model, or it is damaged.
        """
        if self.start or not self.source:
            return self.start
        return load_start(self.source, self.run.path.parent, self.new_tokens)


def load_start(source: str, out: Path, new_tokens: bool) -> Start:
    """A model to begin training with.

    Args:
        source: as in ``--from``.
        out: the folder in which runs are looked up by name.
        new_tokens: draw its token embeddings anew.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from nanogpt_cli.cli import sources
    from nanogpt_cli.training.starting import Start

    found = sources.resolve(source, out=out)
    for note in found.notes:
        console.say(note)
    word = sources.tokenizer_word(source, out, found.tokenizer)
    return Start(found.model, found.tokenizer, found.label, word, new_tokens)


def begun(asked: Request) -> Job:
    """A new run: recipe checked, data ready, weights fitting, folder made.

    Raises:
        UserError: something of it is wrong; there is no run folder then.
    """
    from nanogpt_cli import files
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run.folder import fresh_run

    loaded = recipe_files.load(asked.name, asked.sets)
    for note in loaded.notes:
        console.say(note)
    check(loaded)
    addresses.keep(loaded.recipe.log.notify)
    check_processes(loaded.recipe, asked)
    recipe = loaded.recipe.for_processes(asked.processes)
    start = load_start(asked.source, asked.out, asked.new_tokens) if asked.source else None
    data = prepared(recipe)
    if start:
        _check_fit(start, data, recipe)
    proof = _proved(data, asked)
    with files.readable_os_errors("make a run folder", asked.out):
        run = (
            RunFolder(Path(asked.folder)) if asked.folder else fresh_run(recipe.run.name, asked.out)
        )
        files.write_text(run.recipe, recipe_files.to_toml(recipe))
    if run.name != recipe.run.name and not asked.folder:
        console.say(f"{asked.out / recipe.run.name} exists; this run is {run.path}")
    return Job(
        recipe, data, run, resume=False, source=asked.source, new_tokens=asked.new_tokens,
        skip=asked.skip, made_here=not asked.folder, start=start, proof=proof,
    )  # fmt: skip


def check(loaded: Loaded) -> None:
    """Refuse what a run could not begin with, as far as it is known without data and torch.

    Raises:
        UserError: the run's name is no folder name, or the library of a sink is missing.
    """
    from nanogpt_cli.run import sinks
    from nanogpt_cli.run.folder import check_name

    check_name(loaded.recipe.run.name)
    sinks.check(loaded.recipe.log.sinks)


def check_processes(recipe: Recipe, asked: Request) -> None:
    """Refuse more processes than can share a step and have a device each; nothing is started.

    Raises:
        UserError: they cannot.
    """
    if asked.processes == 1:
        return
    from nanogpt_cli.machine import ranks
    from nanogpt_cli.recipe import shares

    shares.check(recipe, asked.processes)
    launched = "LOCAL_WORLD_SIZE" in os.environ  # by torchrun, whose command is not known
    ranks.check_devices(
        recipe.train.device,
        ranks.on_this_machine(asked.processes),
        None if launched else lambda gpus: shell.hint(*replace(asked, processes=gpus).words()),
    )


def check_data(recipe: Recipe, processes: int = 1) -> list[str]:
    """Refuse a device, data or a tokenizer that training would refuse; nothing is prepared.

    Args:
        recipe: to be carried out.
        processes: that would share each step.

    Returns:
        What of the recipe would waste time, as sentences.

    Raises:
        UserError: there is no such thing, or a prepared set does not fit the recipe.
    """
    from nanogpt_cli.machine import device
    from nanogpt_cli.recipe import shares
    from nanogpt_cli.text import prepare, tokens
    from nanogpt_cli.training import spec

    chosen = device.choose(recipe.train)
    vocab_size = recipe.model.vocab_size
    folder = prepare.ready(recipe.data.model_dump())
    if folder is not None:
        data = tokens.open_data(folder)
        spec.check_data(recipe, data)
        vocab_size = spec.model_config(recipe, data.vocab_size).vocab_size
    cuda = chosen.device.type == "cuda"
    return shares.notes(recipe, processes, vocab_size=vocab_size, cuda=cuda)


def _check_fit(start: Start, data: Path, recipe: Recipe) -> None:
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import spec, starting

    tokens = open_data(data)
    starting.check_fit(start, tokens, spec.model_config(recipe, tokens.vocab_size))


def restarted(asked: Request) -> Job | None:
    """The run that a launcher's first try has begun, if it came to a checkpoint."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run.folder import list_runs

    wanted = recipe_files.load(asked.name, asked.sets).recipe.run.name
    tried = [
        run
        for run in list_runs(asked.out)
        if re.fullmatch(rf"{re.escape(wanted)}(-\d+)?", run.name)
    ]
    newest = RunFolder(Path(asked.folder)) if asked.folder else next(iter(tried), None)
    if newest is None or not any(newest.checkpoints.glob("step-*")):
        return None
    return resumed(replace(asked, name=str(newest.path), sets=(), skip=()))


def resumed(asked: Request) -> Job:
    """An earlier run, with its own recipe.

    Raises:
        UserError: there is no such run, or the overrides do not fit it.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.run.folder import find_run
    from nanogpt_cli.training import progress
    from nanogpt_cli.training.checkpoints import retention

    run = find_run(asked.name or None, asked.out)
    loaded = recipe_files.load(run.own_recipe(), asked.sets)
    for note in loaded.notes:
        console.say(note)
    addresses.keep(loaded.recipe.log.notify)
    check_processes(loaded.recipe, replace(asked, name=str(run.path)))
    planned = loaded.recipe.train.max_steps
    if not asked.before and max(retention.list_steps(run), default=0) >= planned:
        console.say(f"all {planned} steps are made; --set train.max_steps=N makes the run longer")
    asked_data = loaded.recipe.data.model_dump(mode="json")
    data = progress.data_folder(progress.newest_state(run), asked_data, console.say)
    return Job(
        loaded.recipe, data, run, resume=True, before=asked.before, skip=asked.skip,
        proof=_proved(data, asked),
    )  # fmt: skip


def _proved(data: Path, asked: Request) -> Certificate | None:
    """The proof of the validation split if it was asked for, before time is spent on training."""
    from nanogpt_cli.cli import certificate
    from nanogpt_cli.text.tokens import open_data

    if not asked.certify:
        return None
    return certificate.demand(open_data(data), replace(asked, certify=False).words())


def prepared(recipe: Recipe) -> Path:
    """The folder of a recipe's data, which is prepared now if it is missing.

    Raises:
        UserError: the recipe's device is missing, which is said before hours of preparation; or the
            data cannot be prepared.
    """
    from nanogpt_cli.text import prepare

    if recipe.train.device not in ("auto", "cpu"):  # these are never missing, and torch is slow
        from nanogpt_cli.machine import device

        device.named(recipe.train.device)
    return prepare.ensure(recipe.data.model_dump(), report=console.say)


def check_request(asked: Request) -> None:
    """Refuse options that exclude each other.

    Raises:
        UserError: they do.
    """
    if not asked.name and not asked.resume:
        raise UserError(
            "which recipe?", "for example `nanogpt train small`; `nanogpt recipes` lists them"
        )
    if asked.resume and asked.source:
        raise UserError("--resume and --from exclude each other", "--from begins a new run")
    if asked.before and not asked.resume:
        raise UserError(
            "--before goes with --resume", "--before chooses the checkpoint to resume from"
        )
    if asked.new_tokens and not asked.source:
        raise UserError(
            "--new-tokens goes with --from",
            "--new-tokens replaces the token embeddings of the weights that --from names",
        )
