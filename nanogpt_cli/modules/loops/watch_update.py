"""Weights, gradients and updates of blocks around one step of somebody else's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nanogpt_cli.machine.distributed import Group, norms

# Entries of a matrix that are compared before and after a step: whole rows, evenly spread.
_ENTRIES = 1 << 20

Timed = Callable[[], Any]


class Update:
    """Hooks on optimizers for one step; a loss scaler that skips the step leaves them unused.

    Gradients are those that the optimizer gets: after clipping, and without the factor of a
    ``GradScaler``.

    Args:
        blocks: one module per layer.
        optimizers: all that change the blocks.
        timed: a context manager that measures what the hooks take.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], optimizers: Sequence[Optimizer], timed: Timed
    ) -> None:
        self.timed, self.layers = timed, len(blocks)
        self._layer = {p: layer for layer, block in enumerate(blocks) for p in block.parameters()}
        self._matrices = [p for p in self._layer if p.dim() > 1]
        self._seen: set[int] = set()
        self._before: dict[nn.Parameter, Tensor] = {}
        self._gradients: list[tuple[list[int], Tensor]] = []
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._look) for optimizer in optimizers
        ]

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def _look(self, optimizer: Optimizer, *_: object) -> None:
        with self.timed():
            mine = [p for group in optimizer.param_groups for p in group["params"]]
            mine = [p for p in mine if p.grad is not None]
            if not mine or id(optimizer) in self._seen:
                return  # the optimizer's second step
            self._seen.add(id(optimizer))
            found = norms([p.grad for p in mine if p.grad is not None], Group())
            scale = getattr(optimizer, "grad_scale", None)  # left to fused optimizers
            if isinstance(scale, Tensor):
                found = found / scale.to(found.device)
            self._gradients.append(([self._layer.get(p, -1) for p in mine], found))
            for p in mine:
                if p in self._layer and p.dim() > 1:
                    self._before[p] = _rows(p).clone()

    def gradient_norm(self) -> Tensor | None:
        """The norm of the gradient of all parameters; ``None`` if no optimizer was seen."""
        found = [norm for _, norm in self._gradients]
        return torch.linalg.vector_norm(torch.cat(found)) if found else None

    @torch.no_grad()
    def complete(self) -> dict[str, list[Tensor]]:
        """The statistics that every layer has, scalars on the device; the hooks are gone then."""
        self.remove()
        now = [_rows(p) for p in self._matrices]
        owners = [self._layer[p] for p in self._matrices]
        if len(set(owners)) < self.layers:
            return {}  # a block has no matrices
        weight = self._by_layer(owners, norms(now, Group()).square())
        sizes = torch.tensor([float(x.numel()) for x in now], device=weight.device)
        found = {"weight_rms": (weight / self._by_layer(owners, sizes)).sqrt()}
        if len(self._before) == len(now):
            changes = [self._before[p].sub_(x) for p, x in zip(self._matrices, now, strict=True)]
            change = self._by_layer(owners, norms(changes, Group()).square())
            found["update_ratio"] = 0.5 * (change / weight.clamp(min=1e-30)).log10()
        if self._gradients:
            owners = [layer for layers, _ in self._gradients for layer in layers]
            squares = torch.cat([norm for _, norm in self._gradients]).square()
            if {*owners, -1} == set(range(-1, self.layers)):
                found["grad_norm"] = self._by_layer(owners, squares).sqrt()
        return {name: list(row) for name, row in found.items()}

    def _by_layer(self, owners: list[int], values: Tensor) -> Tensor:
        """Sums of one value per tensor over the tensors of each layer."""
        total = torch.zeros(self.layers + 1, device=values.device)  # the last: outside the blocks
        place = torch.tensor([owner % (self.layers + 1) for owner in owners], device=values.device)
        return total.index_add_(0, place, values)[:-1]


def _rows(parameter: Tensor) -> Tensor:
    """Evenly spread rows of a matrix, or all of a small one."""
    return parameter.detach()[:: max(1, parameter.numel() // _ENTRIES)]
