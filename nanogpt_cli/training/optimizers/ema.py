"""The exponential moving average of the weights (Polyak & Juditsky 1992), kept beside them.

After the update of step s (from 0) each parameter's average moves by ``1 - decay(s)`` towards the
parameter, ``decay(s) = min(decay, (1 + s) / (10 + s))``: a short run is not held back by its
initial values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.machine import distributed
from nanogpt_cli.model.gpt import GPT


class Average:
    """Averages of a model's parameters; with ``decay = 0`` there are none and all is a no-op.

    Args:
        model: whose parameters are averaged, already placed (and split over ranks).
        decay: what stays of the average in each step.
    """

    def __init__(self, model: GPT, decay: float = 0.0) -> None:
        self.model = model
        self.decay = decay
        named = model.named_parameters() if decay else ()
        self.parameters = {name: parameter.detach() for name, parameter in named}
        self.values = {name: value.clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that the update of ``step`` (from 0) left."""
        if self.values:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(_local(self.values), _local(self.parameters), share)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, value in self.values.items():
            value.copy_(distributed.like(tensors[name], value))

    def restart(self) -> None:
        """Begin at the present weights, as when a checkpoint holds no averages."""
        for name, value in self.values.items():
            value.copy_(self.parameters[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages as its weights inside the block; afterwards its own bits."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # One tensor at a time: a whole second copy would show in the peak of memory.
        for name, value in self.values.items():
            parameter = self.parameters[name]
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)
        if self.values:
            distributed.forget_gathered(self.model)


def _local(tensors: Mapping[str, Tensor]) -> list[Any]:
    found: Iterable[Tensor] = tensors.values()
    return [distributed.local(tensor) for tensor in found]
