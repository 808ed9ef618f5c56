"""Checkpoints of other tools, in and out: one module per format.

Readers return ``Foreign``; writers take an ``Exportable`` (see ``source.py``) and fill a folder.
Nothing here executes what a file says: pickles pass a scan first (``safe_torch.py``), names and
shapes are checked before memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Foreign:
    """What a reader found.

    Attributes:
        model: in evaluation mode, on the CPU, float32.
        tokenizer: None when the source has none.
        notes: what a person should know, one sentence each.
        step: optimizer steps it has seen, 0 if the source does not say.
    """

    model: GPT
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()
    step: int = 0
