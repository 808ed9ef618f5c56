"""Muon: momentum whose matrix updates are made orthogonal (Jordan et al. 2024).

Differences from ``torch.optim.Muon``, which the tests compare with: each iteration has the
polynomial that is best for what the last one left (Polar Express, Amsel et al. 2025) instead of one
for all; matrices of one shape are orthogonalised together in one batched chain, the
query/key/value projection is treated as three matrices, and the iteration runs in float32 where
bfloat16 has no hardware (on CPUs without it bfloat16 was about 20 times slower).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt_cli.machine import parts
from nanogpt_cli.machine.distributed import gathered, is_split, like, local
from nanogpt_cli.training.adamw import Optimizer

# a, b, c of a·x + b·x³ + c·x⁵ for one iteration.
Polynomial = tuple[float, float, float]

# The smallest singular value, as a share of the matrix's norm, that the iterations are made for.
_SMALLEST = 1e-3
# A little more than the norm: rounded to bfloat16, a singular value may exceed it.
_ROOM = 1.02
_EPS = 1e-7
_EXCHANGES = 20
_NARROW = 1e-3


@functools.cache
def polynomials(steps: int, smallest: float = _SMALLEST) -> tuple[Polynomial, ...]:
    """The polynomials that bring singular values from [smallest, 1] nearest to 1 in so many steps.

    Step by step the odd quintic with the least largest error on the interval that is left (Amsel
    et al. 2025, arXiv:2505.16932), found by Remez's exchange.
    """
    low, high = smallest, 1.0
    found = []
    for _ in range(steps):
        polynomial, error = _best_quintic(low, high)
        found.append(polynomial)
        low, high = 1 - error, 1 + error
    return tuple(found)


def _best_quintic(low: float, high: float) -> tuple[Polynomial, float]:
    """The odd quintic nearest to 1 on [low, high], and its largest error.

    It equals 1 ∓ error by turns at low, at its two extremes between, and at high.
    """
    if high - low < _NARROW:  # a point, where only rounding would tell the four apart
        return (15 / 8, -10 / 8, 3 / 8), high - 1
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(_EXCHANGES):
        x = np.array([low, *inner, high])
        system = np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4)).tolist()
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
    return (a, b, c), error


def orthogonalize(
    x: Tensor, steps: int, dtype: torch.dtype, schedule: Sequence[Polynomial] = ()
) -> Tensor:
    """Approximately the nearest semi-orthogonal matrices, by Newton-Schulz iteration.

    Args:
        x: (N, rows, columns), rows ≤ columns for speed.
        steps: iterations.
        dtype: of the iteration.
        schedule: their polynomials; ``polynomials(steps)`` without.

    Returns:
        Tensor of the shape and dtype of ``x`` with singular values near 1: for those above a
        thousandth of the norm, within 0.12 after 5 steps, 0.001 after 6.
    """
    y = x.to(dtype)
    y = y / (y.norm(dim=(-2, -1), keepdim=True) * _ROOM + _EPS)
    schedule = schedule or polynomials(steps)
    # Squares of singular values need float32's digits, so bfloat16 goes the plain way.
    small = dtype != torch.bfloat16 and y.shape[-1] >= 2 * y.shape[-2]
    return (_by_gram(y, schedule) if small else _plainly(y, schedule)).to(x.dtype)


def _plainly(y: Tensor, schedule: Sequence[Polynomial]) -> Tensor:
    """Newton-Schulz on the matrices themselves, (N, rows, columns) of norm at most 1."""
    for a, b, c in schedule:
        gram = y @ y.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    return y


def _by_gram(y: Tensor, schedule: Sequence[Polynomial]) -> Tensor:
    """The same through the (rows, rows) matrices G = YYᵀ, which commute with their polynomials.

    Y ← PY with P = a + bG + cG² makes G ← PGP, so the factors can be collected in Q and the wide
    matrix is touched twice instead of twice a step: 0.6 of the time for 4 columns a row.
    """
    gram = y @ y.mT
    product: Tensor | None = None
    for step, (a, b, c) in enumerate(schedule):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < len(schedule) - 1:
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
        schedule: their polynomials, for comparisons; the best ones without.
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
        schedule: Sequence[Polynomial] = (),
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
        self.schedule = schedule

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
                for matrix, piece in zip(
                    torch.split(target, rows), torch.split(update, rows), strict=True
                ):
                    key = (*_wide(piece).shape, group["ns_steps"])
                    stacks[key].append(_Turn(matrix, piece, group["lr"]))
        for (_, _, steps), turns in stacks.items():
            made = partial(orthogonalize, steps=steps, dtype=self.dtype, schedule=self.schedule)
            parts.run(partial(_turn, turns, made), range(len(turns)), n_parts)
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
        updates = [u for some in parts.run(advance, range(len(params)), n_parts) for u in some]
        return [(p, gathered(update, p)) for p, update in zip(params, updates, strict=True)]


@torch.no_grad()  # of the thread that calls it
def _advance(
    grads: list[Tensor], buffers: list[Tensor], momentum: float, mine: range
) -> list[Tensor]:
    """Nesterov updates of some of the parameters, whose buffers go on."""
    chosen = slice(mine.start, mine.stop)
    if not mine:
        return []
    torch._foreach_lerp_(buffers[chosen], grads[chosen], 1 - momentum)
    return list(torch._foreach_lerp(grads[chosen], buffers[chosen], momentum))


@torch.no_grad()
def _turn(turns: Sequence[_Turn], orthogonal: Callable[[Tensor], Tensor], mine: range) -> None:
    """Change some matrices of one shape, all in one batched chain."""
    chosen = turns[mine.start : mine.stop]
    batch = torch.stack([_wide(turn.update) for turn in chosen])
    for turn, result in zip(chosen, orthogonal(batch), strict=True):
        rows, columns = turn.update.shape
        scale = max(1.0, rows / columns) ** 0.5
        turn.target.add_(result.mT if rows > columns else result, alpha=-turn.lr * scale)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has fewer rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
