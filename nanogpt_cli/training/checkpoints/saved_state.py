"""``state.json`` of a checkpoint, checked once where it is read: later code may trust its types."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from nanogpt_cli import typed_tables
from nanogpt_cli.model import limits
from nanogpt_cli.typed_tables import Count, Table


class _RecipeData(Table):
    name: str = ""
    tokenizer: str = ""
    val_fraction: float = Field(0.0, ge=0, lt=1)


class _RecipeTrain(Table):
    parts: Count = 0


class _RecipeSample(Table):
    prompt: str = ""


class _Recipe(Table):
    data: _RecipeData = _RecipeData()
    model: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    train: _RecipeTrain = _RecipeTrain()
    sample: _RecipeSample = _RecipeSample()


class _Data(Table):
    folder: str = ""


class _Progress(Table):
    step: Count = 0
    tokens: Count = 0
    lr_factor: float = Field(1.0, gt=0)
    best_step: int = -1
    best_loss: float | None = None
    evals_without_best: Count = 0
    evaluated_step: int = -1
    skip: list[Count] = Field(default_factory=list)
    begun_from: str = ""


class _State(Table):
    step: Count
    tokens: Count = 0
    model: dict[str, Any]
    recipe: _Recipe = _Recipe()
    data: _Data = _Data()
    progress: _Progress = _Progress()
    scaler: dict[str, float] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)
    val_loss: float | None = None


def check(state: dict[str, Any]) -> None:
    """Look at the types of what is used.

    Raises:
        ValueError: a value is missing, of another type or out of range; the message names its key.
    """
    typed_tables.check(_State, state)
    limits.check_config(state["model"])
