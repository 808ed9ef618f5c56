"""Import and export of other tools' checkpoints, one module per format.

Readers return a ``LoadedModel``; writers take an ``Exportable`` (see ``source.py``) and fill a
folder. Nothing here executes the content of a file: pickles are scanned first (``safe_torch.py``),
and names and shapes are checked before memory is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer


def import_again(state: Mapping[str, Any]) -> str:
    """How to get an imported run with a tokenizer, as a hint; empty if no run was imported.

    Args:
        state: ``state.json`` of its checkpoint.
    """
    imported = state.get("imported")
    if not isinstance(imported, dict):
        return ""
    command = shell.hint("import", imported.get("from", "SOURCE"), "--tokenizer", "FILE")
    return f"import it again, with the tokenizer's file or kind: {command}"


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
                f"{self.label} has no tokenizer",
                import_again(self.state) or "put its tokenizer.json (or meta.pkl) beside it",
            )
        return self.tokenizer
