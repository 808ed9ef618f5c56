"""Import and export of other tools' checkpoints, one module per format.

Readers return ``Foreign``; writers take an ``Exportable`` (see ``source.py``) and fill a folder.
Nothing here executes the content of a file: pickles are scanned first (``safe_torch.py``), and
names and shapes are checked before memory is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Foreign:
    """A model read from another tool's checkpoint.

    Attributes:
        model: the model, in evaluation mode, on the CPU, in float32.
        tokenizer: its tokenizer, or None if the checkpoint has none.
        notes: sentences for the user.
        step: optimizer steps it was trained for, 0 if the checkpoint does not say.
    """

    model: GPT
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()
    step: int = 0
