"""Muon: momentum whose matrix updates are made orthogonal (Jordan et al. 2024).

Differences from ``torch.optim.Muon``, which the tests compare with: each iteration has the
polynomial that is best for what the last one left (Polar Express, Amsel et al. 2025) instead of one
for all; matrices of one shape are orthogonalised together in one batched chain, the
query/key/value projection is treated as three matrices, and the iteration runs in float32 where
bfloat16 has no hardware (on CPUs without it bfloat16 was about 20 times slower).

Several processes share the matrices out: each makes some of them orthogonal. Whole weights (DDP)
need one message a step, which brings all results to all ranks; weights split by rows (FSDP2) need
two, which bring the rows of a matrix to the rank that works on it and the results back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanogpt_cli.machine import distributed, parts
from nanogpt_cli.machine.distributed import Group, is_split, local
from nanogpt_cli.machine.exchange import collect, deal, swap
from nanogpt_cli.training.optimizers.adamw import Optimizer
from nanogpt_cli.training.optimizers.newton_schulz import Polynomial, orthogonalize


class _Turn(NamedTuple):
    """One matrix to change.

    Attributes:
        target: the matrix, or the rows of a parameter that are one; of a parameter that is split
            over ranks, what this rank holds of them.
        update: its Nesterov momentum, before it is made orthogonal, in the shape of ``target``.
        shape: of the whole matrix.
        held: rows of it on each rank.
        lr: step size.
        steps: iterations.
    """

    target: Tensor
    update: Tensor
    shape: tuple[int, int]
    held: tuple[int, ...]
    lr: float
    steps: int

    @property
    def kind(self) -> tuple[int, int, int]:
        """What the turns of one batched chain have in common."""
        return min(self.shape), max(self.shape), self.steps

    @property
    def cost(self) -> int:
        """Multiplications of the plain way, but for a factor that is the same for all."""
        small, large, steps = self.kind
        return small * small * (2 * large + small) * steps

    def held_values(self, rank: int) -> int:
        """Values of the matrix on a rank."""
        return self.held[rank] * self.shape[1]

    def change(self, orthogonal: Tensor) -> None:
        """Make the change, given the rows of the orthogonal matrix that belong to ``target``."""
        scale = max(1.0, self.shape[0] / self.shape[1]) ** 0.5
        self.target.add_(orthogonal, alpha=-self.lr * scale)


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
        group: the processes that share the matrices out.
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
        group: Group = Group(),  # noqa: B008 - frozen
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
        self.group = group

    @torch.no_grad()
    def step(self, n_parts: int = 1) -> None:
        """Update every parameter that has a gradient; with several processes, all call it."""
        turns: list[_Turn] = []
        for group in self.param_groups:
            for p, update in self._momentum(group, n_parts):
                local(p).mul_(1 - group["lr"] * group["weight_decay"])
                turns += _turns(p, update, group)
        if not turns:
            return
        owners = deal([turn.cost for turn in turns], self.group.world)
        mine = [turn for turn, owner in zip(turns, owners, strict=True) if owner == self.group.rank]
        if any(is_split(p) for group in self.param_groups for p in group["params"]):
            self._change_slices(turns, owners, mine)
        elif self.group.world > 1:
            self._change_shared(turns, owners, mine)
        else:
            self._change(turns, n_parts)

    def _change(self, turns: list[_Turn], n_parts: int) -> None:
        """Change whole matrices on this process alone."""
        for stack in _stacks(turns):
            chosen = [turns[i] for i in stack]
            parts.run(partial(self._turn, chosen), range(len(chosen)), n_parts)

    @torch.no_grad()  # of the thread that calls it
    def _turn(self, turns: Sequence[_Turn], mine: range) -> None:
        chosen = turns[mine.start : mine.stop]
        for turn, result in zip(
            chosen, self._chain(chosen, [t.update for t in chosen]), strict=True
        ):
            turn.change(result)

    def _change_shared(self, turns: list[_Turn], owners: list[int], mine: list[_Turn]) -> None:
        """Change matrices that every rank holds whole, each by what its owner makes of it.

        Ranks that computed the same themselves might round it differently, and drift apart.
        """
        made = self._orthogonal(mine, [turn.update for turn in mine])
        like = turns[0].update.new_empty(0, dtype=self.dtype)
        found = collect(made, owners, [turn.shape for turn in turns], like)
        for turn, result in zip(turns, found, strict=True):
            turn.change(result)

    def _change_slices(self, turns: list[_Turn], owners: list[int], mine: list[_Turn]) -> None:
        """Change matrices of which each rank holds some rows.

        The rows of each matrix are sent to its owner, which sends back what becomes of them.
        """
        world = self.group.world
        theirs = [
            [turn for turn, owner in zip(turns, owners, strict=True) if owner == rank]
            for rank in range(world)
        ]
        held = [[turn.held_values(rank) for turn in mine] for rank in range(world)]
        arrived = swap([[turn.update for turn in some] for some in theirs], held, turns[0].update)
        updates = [
            torch.cat(arrived[i :: len(mine)]).view(turn.shape) for i, turn in enumerate(mine)
        ]
        made = [
            torch.split(m, list(t.held))
            for m, t in zip(self._orthogonal(mine, updates), mine, strict=True)
        ]
        back = swap(
            [[rows[rank] for rows in made] for rank in range(world)],
            [[turn.update.numel() for turn in some] for some in theirs],
            turns[0].update.new_empty(0, dtype=self.dtype),
        )
        for turn, rows in zip((turn for some in theirs for turn in some), back, strict=True):
            turn.change(rows.view(turn.update.shape))

    def _orthogonal(self, turns: Sequence[_Turn], updates: Sequence[Tensor]) -> list[Tensor]:
        """The orthogonal matrices of some turns, whose whole updates these are, in ``dtype``."""
        found: dict[int, Tensor] = {}
        for stack in _stacks(turns):
            made = self._chain([turns[i] for i in stack], [updates[i] for i in stack])
            found |= {i: result.to(self.dtype) for i, result in zip(stack, made, strict=True)}
        return [found[i] for i in range(len(turns))]

    def _chain(self, turns: Sequence[_Turn], updates: Sequence[Tensor]) -> list[Tensor]:
        """The orthogonal matrices of turns of one kind, all in one batched chain."""
        batch = torch.stack([_wide(update) for update in updates])
        made = orthogonalize(batch, turns[0].steps, self.dtype, self.schedule)
        return [
            result.mT if turn.shape[0] > turn.shape[1] else result
            for turn, result in zip(turns, made, strict=True)
        ]

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
        return list(zip(params, updates, strict=True))


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


def _turns(p: Tensor, update: Tensor, group: dict[str, Any]) -> list[_Turn]:
    """The matrices of a parameter and of its Nesterov momentum, which may be this rank's slice."""
    rows, columns = p.shape[0] // group["split"], p.shape[1]
    first, values = distributed.rows(p)
    found = []
    for start in range(0, p.shape[0], rows):
        matrix = range(start, start + rows)
        held = tuple(len(_common(matrix, some)) for some in distributed.all_rows(p))
        here = _common(matrix, range(first, first + len(values)))
        own = slice(here.start - first, here.stop - first)
        found.append(
            _Turn(values[own], update[own], (rows, columns), held, group["lr"], group["ns_steps"])
        )
    return found


def _common(first: range, second: range) -> range:
    start = max(first.start, second.start)
    return range(start, max(start, min(first.stop, second.stop)))


def _stacks(turns: Sequence[_Turn]) -> list[list[int]]:
    """Indices of the turns of each kind."""
    found: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for index, turn in enumerate(turns):
        found[turn.kind].append(index)
    return list(found.values())


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever has fewer rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
