"""Sketches are made once: a fault changes one of a model's parts, and the others stay the same."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from torch import Tensor

from nanogpt_cli.modules import inspection
from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.faults import lint
from nanogpt_cli.modules.faults.sketch import Sketch, sketch

_KEPT = 4000  # sketches; some 10 kB each
_made: dict[Any, Sketch] = {}


def remembered(part: Part, values: Tensor) -> Sketch:
    """``sketch``, which is a function of the part and its values alone, without computing twice."""
    plain = values.detach().float().contiguous()
    key = (part, tuple(plain.shape), hashlib.sha256(plain.numpy()).digest())
    if key not in _made:
        if len(_made) == _KEPT:
            _made.clear()
        _made[key] = sketch(part, values)
    return _made[key]


@pytest.fixture(autouse=True)
def sketches_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all that judges the weights of a module."""
    monkeypatch.setattr(lint, "sketch", remembered)
    monkeypatch.setattr(inspection, "sketch", remembered)
