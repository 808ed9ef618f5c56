"""Values that a loop gives to its ``Watch``, checked where they come in.

A mistake is named at once; otherwise it would end the training much later, in the middle of a step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import check_name
from nanogpt_cli.user_input import expanded


def number(name: str, value: object) -> Tensor | float:
    """A loss, a norm or a learning rate: a real number, or a tensor of one (left on its device).

    Raises:
        UserError: it is something else.
    """
    advice = "give a float, or a tensor with one value"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            advice = "give the mean over the step's tokens: loss.mean()"
            raise UserError(f"{name} has {value.numel()} values, one is expected", advice)
        if value.is_meta or value.is_complex():
            kind = "has no value (device meta)" if value.is_meta else "is a complex number"
            raise UserError(f"{name} {kind}", advice)
        return value.detach()
    if not isinstance(value, Real):
        raise UserError(f"{name} is of type {type(value).__name__}, a number is expected", advice)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole(name: str, value: object) -> int:
    """A count that is not negative.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise UserError(f"{name}={value!r:.80} is not a whole number from 0 on")
    return int(value)


def share(name: str, value: object) -> float:
    """A share of the time, from 0 on.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise UserError(f"{name}={value!r:.80} is not a share", "0.01 stands for one per cent")
    return float(value)


def optimizers(given: object) -> list[Optimizer]:
    """One optimizer, several or none, as a list; accelerate's wrappers are taken off.

    Raises:
        UserError: one of them is something else.
    """
    several = list(given) if isinstance(given, Iterable) else [] if given is None else [given]
    found = []
    for one in several:
        inner = one if isinstance(one, Optimizer) else getattr(one, "optimizer", one)
        if not isinstance(inner, Optimizer) or hasattr(one, "last_epoch"):  # a schedule
            raise UserError(
                f"optimizer= holds a value of type {type(one).__name__}, not a torch optimizer",
                "give what torch.optim.AdamW(…) returned, or a list of several",
            )
        found.append(inner)
    return found


def folder(given: object) -> Path:
    """The absolute path of a run folder that may have to be created.

    Raises:
        UserError: it is no path, or its name cannot be that of a run.
    """
    if not isinstance(given, (str, os.PathLike)) or not str(given) or "\0" in str(given):
        raise UserError(
            f"{str(given)!r:.80} is not a path of a run folder", "give one such as 'runs/mine'"
        )
    path = expanded(str(given)).resolve()
    check_name(path.name, " for the run folder")
    return path
