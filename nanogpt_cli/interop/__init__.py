"""Import and export of other tools' checkpoints, one module per format.

Readers return a ``LoadedModel``; writers take an ``Exportable`` (see ``source.py``) and fill a
folder. Nothing here executes the content of a file: pickles are scanned first (``safe_torch.py``),
and names and shapes are checked before memory is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and what is known about it.

    Attributes:
        model: the model, in evaluation mode, on the CPU, in float32.
        tokenizer: its tokenizer, or None if it came without one.
        label: a description for the user: ``run small, step 500 (best)``.
        step: optimizer steps it was trained for, 0 if unknown.
        state: ``state.json`` of a checkpoint; empty for other tools' models.
        notes: sentences for the user.
    """

    model: GPT
    tokenizer: Tokenizer | None
    label: str
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UserError: there is none.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.label} has no tokenizer", "put its tokenizer.json (or meta.pkl) beside it"
            )
        return self.tokenizer
