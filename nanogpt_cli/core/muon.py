"""Muon: momentum whose matrix updates are made orthogonal (Jordan et al. 2024).

Differences from ``torch.optim.Muon``, which the tests compare with: matrices of one shape are
orthogonalised together in one batched chain, the query/key/value projection is treated as three
matrices, and the iteration runs in float32 where bfloat16 has no hardware (on CPUs without it
bfloat16 was about 20 times slower).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanogpt_cli.core import parts
from nanogpt_cli.core.adamw import Optimizer
from nanogpt_cli.core.distributed import gathered, is_split, like, local

# Quintic coefficients of Jordan et al.: steep at zero, singular values end within [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPS = 1e-7


def orthogonalize(x: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Approximately the nearest semi-orthogonal matrices, by Newton-Schulz iteration.

    Args:
        x: (N, rows, columns), rows ≤ columns for speed.
        steps: iterations.
        dtype: of the iteration.

    Returns:
        Tensor of the shape and dtype of ``x`` with singular values near 1.
    """
    y = x.to(dtype)
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + _EPS)
    # Squares of singular values need float32's digits, so bfloat16 goes the plain way.
    small = dtype != torch.bfloat16 and y.shape[-1] >= 2 * y.shape[-2]
    return (_by_gram(y, steps) if small else _plainly(y, steps)).to(x.dtype)


def _plainly(y: Tensor, steps: int) -> Tensor:
    """Newton-Schulz on the matrices themselves, (N, rows, columns) of norm at most 1."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = y @ y.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    return y


def _by_gram(y: Tensor, steps: int) -> Tensor:
    """The same through the (rows, rows) matrices G = YYᵀ, which commute with their polynomials.

    Y ← PY with P = a + bG + cG² makes G ← PGP, so the factors can be collected in Q and the wide
    matrix is touched twice instead of twice a step: 0.6 of the time for 4 columns a row.
    """
    a, b, c = COEFFICIENTS
    gram = y @ y.mT
    product: Tensor | None = None
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ (gram @ polynomial)
    return y if product is None else product @ y


class _Turn(NamedTuple):
    """One matrix to change.

    Attributes:
        target: the matrix, or the rows of a parameter that are one.
        update: its Nesterov momentum, before it is made orthogonal.
        lr: step size.
    """

    target: Tensor
    update: Tensor
    lr: float


class Muon(Optimizer):
    """Muon for 2-D weights stored (out, in).

    Args:
        params: groups of 2-D parameters; a group may set ``split`` (a parameter is that many
            matrices on top of each other, 3 for query/key/value).
        lr: step size; each update is scaled by √max(1, out/in) as in the reference.
        momentum: of the Nesterov momentum buffer.
        weight_decay: decoupled, scaled by the learning rate.
        ns_steps: Newton-Schulz iterations.
        dtype: of the iteration.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        ns_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "split": 1,
        }
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, n_parts: int = 1) -> None:
        """Update every parameter that has a gradient."""
        stacks: dict[tuple[int, int, int], list[_Turn]] = defaultdict(list)
        changes: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for p, update in self._momentum(group, n_parts):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                target: Tensor = p
                if is_split(p):  # split over ranks: each makes all of the change
                    target = torch.zeros_like(update)
                    changes.append((p, target))
                rows = p.shape[0] // group["split"]
                for part, piece in zip(
                    torch.split(target, rows), torch.split(update, rows), strict=True
                ):
                    key = (*_wide(piece).shape, group["ns_steps"])
                    stacks[key].append(_Turn(part, piece, group["lr"]))
        for (_, _, steps), turns in stacks.items():
            parts.run(partial(_turn, turns, steps, self.dtype), range(len(turns)), n_parts)
        for p, change in changes:
            p.add_(like(change, p))

    def _momentum(self, group: dict[str, Any], n_parts: int) -> list[tuple[Tensor, Tensor]]:
        """Advance the buffers of a group; (parameter, Nesterov update) pairs."""
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [local(p.grad) for p in params]
        buffers = [local(self.state[p]["momentum_buffer"]) for p in params]
        advance = partial(_advance, grads, buffers, group["momentum"])
        updates = [u for part in parts.run(advance, range(len(params)), n_parts) for u in part]
        return [(p, gathered(update, p)) for p, update in zip(params, updates, strict=True)]


@torch.no_grad()  # of the thread that calls it
def _advance(
    grads: Sequence[Tensor], buffers: Sequence[Tensor], momentum: float, mine: range
) -> Sequence[Tensor]:
    """Nesterov updates of some of the parameters, whose buffers go on."""
    chosen = slice(mine.start, mine.stop)
    if not mine:
        return []
    torch._foreach_lerp_(buffers[chosen], grads[chosen], 1 - momentum)
    return torch._foreach_lerp(grads[chosen], buffers[chosen], momentum)


@torch.no_grad()
def _turn(turns: Sequence[_Turn], steps: int, dtype: torch.dtype, mine: range) -> None:
    """Change some matrices of one shape, all in one batched chain."""
    chosen = turns[mine.start : mine.stop]
    batch = torch.stack([_wide(turn.update) for turn in chosen])
    for turn, result in zip(chosen, orthogonalize(batch, steps, dtype), strict=True):
        rows, columns = turn.update.shape
        scale = max(1.0, rows / columns) ** 0.5
        turn.target.add_(result.mT if rows > columns else result, alpha=-turn.lr * scale)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has fewer rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
