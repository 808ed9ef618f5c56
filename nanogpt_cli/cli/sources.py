"""Loading of the model that a command names; downloads are reported on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import RunFolder, find_run

if TYPE_CHECKING:
    from nanogpt_cli.interop import LoadedModel as LoadedModel
    from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer


def resolve(
    source: str = "", *, checkpoint: str = "best", out: Path = RUNS, raw: bool = False
) -> LoadedModel:
    """Find and read a model; see ``interop.opening``."""
    from nanogpt_cli.interop import opening

    return opening.resolve(source, checkpoint=checkpoint, out=out, raw=raw, report=console.say)


def tokenizer_word(source: str, out: Path, tokenizer: Tokenizer | None) -> str:
    """What to give ``nanogpt prepare -t`` for the tokenizer of a model; "" if nothing can be given.

    Args:
        source: the model as the user named it.
        out: the folder in which runs are looked up by name.
        tokenizer: the model's.
    """
    from nanogpt_cli.text.tokenizers import tiktoken_bpe

    if tokenizer is None:
        return ""
    if tokenizer.kind in tiktoken_bpe.KINDS:
        return tokenizer.kind
    for path in (Path(source), out / source):
        if path.is_dir() and (RunFolder(path).is_run() or (path / "tokenizer.json").is_file()):
            return str(path)
    return "" if source else str(find_run(None, out).path)
