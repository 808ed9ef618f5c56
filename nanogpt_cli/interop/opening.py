"""Where a model comes from: a run, a checkpoint, a Hugging Face folder or hub id, a ``ckpt.pt``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import Foreign, hub
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import RunFolder, find_run
from nanogpt_cli.text.tokenizer import Tokenizer
from nanogpt_cli.training import checkpoint as checkpoints
from nanogpt_cli.training import retention

# OpenAI's models have no owner in the ids people type.
_OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True)
class Source:
    """A model to use, and what is known about it.

    Attributes:
        model: on the CPU, in evaluation mode.
        tokenizer: its tokenizer, or None if it came without one.
        label: what it is, for people: ``run small, step 500 (best)``.
        step: optimizer steps it has seen, 0 where unknown.
        state: ``state.json`` of a checkpoint; empty for foreign models.
        notes: what a person should know.
    """

    model: GPT
    tokenizer: Tokenizer | None
    label: str
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UserError: there is none.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.label} has no tokenizer", "put its tokenizer.json (or meta.pkl) beside it"
            )
        return self.tokenizer


def resolve(
    source: str = "",
    *,
    checkpoint: str = "best",
    out: Path = RUNS,
    raw: bool = False,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Source:
    """Find and read a model.

    Args:
        source: a run's name or folder, a checkpoint folder, a Hugging Face folder, ``ckpt.pt`` or
            a folder that holds one, a hub id; empty for the newest run.
        checkpoint: of a run: "best", "last" or a step.
        out: where runs are looked for by name.
        raw: of a run with ``optim.ema``, the weights themselves instead of their average.
        tokenizer: of another tool's checkpoint, in place of its own, which is then not read.
        report: receives a line when something is fetched.

    Raises:
        UserError: there is no such thing, or it is damaged.
    """
    path = Path(source)
    if not source or RunFolder(path).is_run() or RunFolder(out / source).is_run():
        return _of_run(find_run(source or None, out), checkpoint, raw)
    if foreign_files.present(path):
        return _of_path(path, tokenizer, raw=raw)
    if source in _OPENAI:
        folder = hub.download(f"openai-community/{source}", report)
        return _of_path(folder, tokenizer, label=source)
    if _HUB_ID.match(source) and path.parts[0] not in (out.name, ".", ".."):
        return _of_path(hub.download(source, report), tokenizer, label=source)
    return _of_run(find_run(source, out), checkpoint, raw)  # says which runs there are


def _of_run(run: RunFolder, which: str, raw: bool) -> Source:
    folder = retention.find(run, which)
    found = _of_checkpoint(folder, f"run {run.name}", raw)
    mark = " (best)" if retention.is_best(run, found.step) else ""
    return Source(found.model, found.tokenizer, found.label + mark, found.step, found.state)


def _of_checkpoint(folder: Path, name: str, raw: bool) -> Source:
    state = checkpoints.verify(folder, checkpoints.FOR_READING)
    loaded = checkpoints.load(folder, check=False, raw=raw)
    tokenizer = checkpoints.read_tokenizer(folder)
    averaged = checkpoints.weights_file(folder, raw=raw).name == checkpoints.EMA
    label = f"{name}, step {loaded.step}" + (", averaged weights" if averaged else "")
    return Source(loaded.model, tokenizer, label, loaded.step, state)


def _of_path(
    path: Path, tokenizer: Tokenizer | None, *, label: str = "", raw: bool = False
) -> Source:
    label = label or str(path)
    if foreign_files.present(path / checkpoints.STATE):
        return _of_checkpoint(path, label, raw)
    from nanogpt_cli.interop import importing  # every format's reader; a run needs none

    return _of_foreign(importing.read(path, tokenizer=tokenizer), label)


def _of_foreign(found: Foreign, label: str) -> Source:
    return Source(found.model, found.tokenizer, label, found.step, notes=found.notes)
