"""Gradient norms of large embeddings and linear maps, without their gradients.

An embedding or a head of a large vocabulary is the largest matrix of a model, and its gradient is
as large again. The norm of that gradient follows from the few rows it is a sum over. For
G = Δᵀ X, with gradients Δ (N, out) at the outputs and inputs X (N, in) at N positions,
‖G‖² = Σ_ij (Δ Δᵀ)_ij (X Xᵀ)_ij.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli.machine.products import Linear

# Columns that are turned into float64 at a time.
_COLUMNS = 4096


def is_plain(module: nn.Module) -> bool:
    """Whether a module is an embedding or a linear map, and computes as PyTorch's own do."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    return type(module) in (nn.Linear, Linear)


class OuterMaps:
    """Watches plain maps with hooks during a forward pass and the backward pass that follows.

    Their weights take no part in automatic differentiation meanwhile.

    Args:
        maps: (full name of the weight, module) pairs; ``is_plain`` holds for each module.
    """

    def __init__(self, maps: Sequence[tuple[str, nn.Module]]) -> None:
        self._maps = maps
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _ in maps}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note inputs and outputs of the maps within this context."""
        handles: list[Any] = []
        for name, module in self._maps:
            handles.append(module.register_forward_pre_hook(self._freeze))
            handles.append(module.register_forward_hook(self._noting(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def norms(self) -> dict[str, float]:
        """Euclidean norm of the gradient of each weight that was used, after the backward pass."""
        found = {}
        for name, module in self._maps:
            if not (pairs := self._seen[name]):
                continue
            grads = torch.cat([g.reshape(-1, g.shape[-1]) for _, g in pairs])
            if isinstance(module, nn.Embedding):
                ids = torch.cat([x.reshape(-1) for x, _ in pairs])
                found[name] = _looked_up(ids, grads, module.padding_idx)
            else:
                inputs = torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in pairs])
                found[name] = _product(inputs, grads)
        return found

    @staticmethod
    def _freeze(module: nn.Module, _args: Any) -> None:
        weight: Any = module.weight
        weight.requires_grad_(False)

    def _noting(self, name: str) -> Any:
        def note(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            given = args[0].detach()

            # The output itself is not kept: its graph holds the weight. Gradients that come in
            # several pieces are further rows of the same sum.
            def keep(grad: Tensor) -> None:
                self._seen[name].append((given, grad))

            output.register_hook(keep)  # type: ignore[no-untyped-call]

        return note


def _looked_up(ids: Tensor, grads: Tensor, padding: int | None) -> float:
    """Norm of the gradient of an embedding: rows of the same token are added."""
    kept = ids != padding if padding is not None else torch.ones_like(ids, dtype=torch.bool)
    tokens, place = torch.unique(ids[kept], return_inverse=True)
    rows = torch.zeros(len(tokens), grads.shape[-1], dtype=torch.float64)
    rows.index_add_(0, place, grads[kept].double())
    return float(torch.linalg.vector_norm(rows))


def _product(inputs: Tensor, grads: Tensor) -> float:
    """Norm of Δᵀ X; see the head of this file. Float64, because the terms cancel."""
    return math.sqrt(max(0.0, float((_gram(inputs) * _gram(grads)).sum())))


def _gram(rows: Tensor) -> Tensor:
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in torch.split(rows, _COLUMNS, dim=-1):
        total.addmm_(part.double(), part.double().T)
    return total
