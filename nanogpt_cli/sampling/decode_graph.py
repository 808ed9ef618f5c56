"""Decoding steps replayed as CUDA graphs.

On a GPU, launching the kernels of a decoded token takes longer than running them; a CUDA graph
launches all of them at once. It replays fixed shapes and addresses, so the step must be a function
of two buffers only: the tokens and the positions of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A capture costs as much as several steps, and the shape changes when a sequence ends; so the first
# steps in a shape run eagerly.
_EAGER_STEPS = 8


class Replay:
    """A step with fixed shapes that is replayed as a CUDA graph after some eager calls.

    Without CUDA, every call is eager.

    Args:
        step: maps tokens (B,) and positions (B,), both int64, to logits (B, V). It may write to
            memory that it keeps, but must be idempotent, because the warm-up repeats it.
        rows: B.
        device: device of the buffers.

    Attributes:
        failure: why the step could not be captured, in which case it stays eager; "" otherwise.
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
        """Run one step of all rows; returns logits (B, V) that later steps do not overwrite."""
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
        """The step as a graph on the buffers' device, which need not be the current one."""
        device = self.tokens.device
        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            # The capture's own default stream belongs to the device of the process's first capture.
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream(device)
            try:
                # Libraries initialise themselves in their first calls, which a capture forbids.
                side.wait_stream(current)
                with torch.cuda.stream(side):
                    for _ in range(2):
                        self.step(self.tokens, self.positions)
                current.wait_stream(side)
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    self._logits = self.step(self.tokens, self.positions)
            finally:
                torch.cuda.set_stream(current)  # an aborted capture leaves its own stream current
        return graph
