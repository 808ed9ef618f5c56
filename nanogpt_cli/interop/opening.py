"""Opening a model: a run, a checkpoint, a Hugging Face folder or hub id, or a ``ckpt.pt``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nanogpt_cli import foreign_files
from nanogpt_cli.interop import LoadedModel, hub
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import RunFolder, find_run
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint as checkpoints
from nanogpt_cli.training.checkpoints import retention

# OpenAI's models, which are usually named without their owner.
_OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def resolve(
    source: str = "",
    *,
    checkpoint: str = "best",
    out: Path = RUNS,
    raw: bool = False,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Find and read a model.

    Args:
        source: a run's name or folder, a checkpoint folder, a Hugging Face folder, ``ckpt.pt`` or
            a folder that holds one, a hub id; empty for the newest run.
        checkpoint: which checkpoint of a run: "best", "last" or a step.
        out: the folder in which a run is looked up by name.
        raw: for a run with ``optim.ema``, use the weights themselves instead of their average.
        tokenizer: replaces that of another tool's checkpoint, which is then not read.
        report: receives a line when something is downloaded.

    Raises:
        UserError: nothing is found under this name, or it is damaged.
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


def _of_run(run: RunFolder, which: str, raw: bool) -> LoadedModel:
    folder = retention.find(run, which)
    found = _of_checkpoint(folder, f"run {run.name}", raw)
    mark = " (best)" if retention.is_best(run, found.step) else ""
    return replace(found, label=found.label + mark)


def _of_checkpoint(folder: Path, name: str, raw: bool) -> LoadedModel:
    state = checkpoints.verify(folder, checkpoints.FOR_READING)
    loaded = checkpoints.load(folder, check=False, raw=raw)
    tokenizer = checkpoints.read_tokenizer(folder)
    averaged = checkpoints.weights_file(folder, raw=raw).name == checkpoints.EMA
    label = f"{name}, step {loaded.step}" + (", averaged weights" if averaged else "")
    return LoadedModel(loaded.model, tokenizer, label, loaded.step, state)


def _of_path(
    path: Path, tokenizer: Tokenizer | None, *, label: str = "", raw: bool = False
) -> LoadedModel:
    label = label or str(path)
    if foreign_files.present(path / checkpoints.STATE):
        return _of_checkpoint(path, label, raw)
    from nanogpt_cli.interop import importing  # imports the readers of all formats

    return replace(importing.read(path, tokenizer=tokenizer), label=label)
