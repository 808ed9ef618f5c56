"""Loading of the model that a command names; downloads are reported on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.interop import LoadedModel as LoadedModel


def resolve(
    source: str = "", *, checkpoint: str = "best", out: Path = RUNS, raw: bool = False
) -> LoadedModel:
    """Find and read a model; see ``interop.opening``."""
    from nanogpt_cli.interop import opening

    return opening.resolve(source, checkpoint=checkpoint, out=out, raw=raw, report=console.say)
