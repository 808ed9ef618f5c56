"""Replaying a step: on a GPU the launches of a decoded token take longer than its arithmetic.

A CUDA graph launches all of them at once. What it replays has fixed shapes and addresses, so the
step it is given must be a function of two buffers alone: tokens and positions of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Capturing costs some steps' time, and rows that end change the shape: a shape must last.
_EAGER_STEPS = 8


class Replay:
    """A step with fixed shapes: run as it is at first and without CUDA, then replayed as a graph.

    Args:
        step: tokens (B,) and positions (B,), both int64, to logits (B, V). It may write to memory
            it keeps, but twice with the same input must be as good as once: warming up does so.
        rows: B.
        device: where the buffers lie.

    Attributes:
        failure: why the step could not be captured; it then keeps running as it is.
    """

    def __init__(
        self, step: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device
    ) -> None:
        self.step = step
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.failure = ""
        self._eager_left = _EAGER_STEPS if device.type == "cuda" else math.inf
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """One step of all rows; logits (B, V) that later steps do not change."""
        self.tokens.copy_(torch.tensor(tokens))
        self.positions.copy_(torch.tensor(positions))
        if self._eager_left == 0:
            try:
                self._graph = self._captured()
            except RuntimeError as error:  # something that cannot be captured, too little memory
                self.failure = str(error).splitlines()[0]
        self._eager_left -= 1
        if self._graph is None:
            return self.step(self.tokens, self.positions)
        self._graph.replay()
        return self._logits.clone()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        try:
            # Libraries set themselves up in the first calls, which a capture forbids.
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.step(self.tokens, self.positions)
            current.wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self.step(self.tokens, self.positions)
        finally:
            torch.cuda.set_stream(current)  # a capture that breaks off leaves its own behind
        return graph
