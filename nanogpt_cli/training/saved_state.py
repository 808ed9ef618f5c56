"""``state.json`` of a checkpoint, checked once where it is read: later code may trust its types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanogpt_cli.model import limits

Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Table(BaseModel):
    """Some keys of a table; what other versions write besides stays as it is."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _RecipeData(_Table):
    name: str = ""
    tokenizer: str = ""
    val_fraction: float = Field(0.0, ge=0, lt=1)


class _RecipeTrain(_Table):
    parts: Count = 0


class _RecipeSample(_Table):
    prompt: str = ""


class _Recipe(_Table):
    data: _RecipeData = _RecipeData()
    model: dict[str, Any] = {}
    optim: dict[str, Any] = {}
    train: _RecipeTrain = _RecipeTrain()
    sample: _RecipeSample = _RecipeSample()


class _Data(_Table):
    folder: str = ""


class _Progress(_Table):
    step: Count = 0
    tokens: Count = 0
    lr_factor: float = Field(1.0, gt=0)
    best_step: int = -1
    best_loss: float | None = None
    evals_without_best: Count = 0
    evaluated_step: int = -1
    skip: list[Count] = []


class _State(_Table):
    step: Count
    tokens: Count = 0
    model: dict[str, Any]
    recipe: _Recipe = _Recipe()
    data: _Data = _Data()
    progress: _Progress = _Progress()
    scaler: dict[str, float] = {}
    sha256: dict[str, str] = {}
    val_loss: float | None = None


def check(state: dict[str, Any]) -> None:
    """Look at the types of what is used.

    Raises:
        ValueError: a value is missing, of another type or out of range; the message names its key.
    """
    try:
        _State.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{key:.80}: {reason:.200}") from None
    limits.check_config(state["model"])
