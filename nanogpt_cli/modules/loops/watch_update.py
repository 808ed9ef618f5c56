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
        """The statistics of the layers, scalars on the device; the hooks are gone then.

        NaN stands for a layer without matrices, or one that no optimizer changes.
        """
        self.remove()
        if not self._matrices:
            return {}
        weight = self._by_layer(self._matrices, [_rows(p) for p in self._matrices])
        sizes = self._sums(self._owners(self._matrices), [_rows(p).numel() for p in self._matrices])
        found = {"weight_rms": (weight / sizes).sqrt()}
        if self._before:
            trained = [p for p in self._matrices if p in self._before]
            now = [_rows(p) for p in trained]
            # The sum of what changes, not of what is frozen beside it.
            weight = self._by_layer(trained, now)
            changes = [self._before[p].sub_(x) for p, x in zip(trained, now, strict=True)]
            change = self._by_layer(trained, changes)
            found["update_ratio"] = 0.5 * (change / weight.clamp(min=1e-30)).log10()
        if self._gradients:
            owners = [layer for layers, _ in self._gradients for layer in layers]
            squares = torch.cat([norm for _, norm in self._gradients]).square()
            if max(owners) >= 0:
                found["grad_norm"] = self._sums(owners, squares).sqrt()
        return {name: list(row) for name, row in found.items()}

    def _owners(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        return [self._layer[p] for p in parameters]

    def _by_layer(self, parameters: Sequence[nn.Parameter], tensors: list[Tensor]) -> Tensor:
        """Sums of the squares of one tensor per parameter over the parameters of each layer."""
        return self._sums(self._owners(parameters), norms(tensors, Group()).square())

    def _sums(self, owners: list[int], values: Tensor | list[int]) -> Tensor:
        """Sums of one value per tensor over the tensors of each layer; NaN where it has none."""
        device = self._matrices[0].device
        added = torch.as_tensor(values, dtype=torch.float32, device=device)
        total = torch.zeros(self.layers + 1, device=device)  # the last: outside the blocks
        place = torch.tensor([owner % (self.layers + 1) for owner in owners], device=device)
        total.index_add_(0, place, added)
        none = torch.ones_like(total).index_fill_(0, place, 0.0)
        return total.masked_fill_(none.bool(), float("nan"))[:-1]


def _rows(parameter: Tensor) -> Tensor:
    """Evenly spread rows of a matrix, or all of a small one."""
    return parameter.detach()[:: max(1, parameter.numel() // _ENTRIES)]
