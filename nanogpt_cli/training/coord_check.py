"""Coordinate check: do activations keep their size over width through the first Adam steps?

After Yang et al. 2203.03466, appendix D.1: train the same net at several widths for a few steps and
look at how far each activation has moved. In a right parametrisation the change is as large at
every width (slope 0 on log-log axes); in the standard one it grows, and the best learning rate of
a small model is too large for a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanogpt_cli import recipe
from nanogpt_cli.errors import UserError
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.probes import rms
from nanogpt_cli.init.theory import random_tokens
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.schemes import Scheme
from nanogpt_cli.training.optim import Optimizers

# Slope of log2(change) over log2(width) above which a parametrisation does not transfer.
MAX_SLOPE = 0.2


@dataclass(frozen=True)
class Coordinates:
    """Sizes over width and step.

    Attributes:
        widths: channels of each model.
        names: what was watched: embed, attn, mlp, stream, logits (means over layers).
        size: by name, RMS[width][step], step 0 before the first update.
        change: by name, RMS of the difference from step 0, [width][step].
        losses: [width][step].
    """

    widths: tuple[int, ...]
    names: tuple[str, ...]
    size: dict[str, list[list[float]]]
    change: dict[str, list[list[float]]]
    losses: list[list[float]]

    def slope(self, name: str) -> float:
        """Least-squares slope of log2(change at the last step) over log2(width)."""
        x = [math.log2(w) for w in self.widths]
        y = [math.log2(max(rows[-1], 1e-30)) for rows in self.change[name]]
        mx, my = sum(x) / len(x), sum(y) / len(y)
        pairs = zip(x, y, strict=True)
        return sum((a - mx) * (b - my) for a, b in pairs) / sum((a - mx) ** 2 for a in x)

    @property
    def steepest(self) -> tuple[str, float]:
        """What grows fastest with width, and its slope."""
        return max(((name, self.slope(name)) for name in self.names), key=lambda pair: pair[1])

    @property
    def level(self) -> bool:
        """Nothing grows with width."""
        return self.steepest[1] < MAX_SLOPE


def coord_check(
    config: GPTConfig,
    scheme: Scheme,
    widths: Sequence[int],
    *,
    steps: int = 4,
    lr: float = 1e-3,
    seeds: Sequence[int] = (0, 1),
    muon: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Coordinates:
    """Train at several widths for a few steps on one batch of random tokens.

    Args:
        config: everything but the width; heads keep their size.
        widths: at least two, multiples of the head size.
        lr: for the base width; the scheme's factors apply per class. Large ones leave the first
            few steps' linear regime, where width says nothing.
        seeds: of the models; sizes are averaged over them.
        muon: update the blocks' matrices by Muon, at ten times the rate, instead of Adam.
        progress: called with (models done, models).

    Raises:
        UserError: fewer than two widths, or one that heads do not divide.
    """
    if len(set(widths)) < 2:
        raise UserError("a coordinate check needs at least two widths", "--widths 64,128,256")
    D = min(config.head_size, *widths)
    runs: list[list[_Trace]] = []
    for n, width in enumerate(widths):
        if width % D:
            raise UserError(f"width {width} is not a multiple of the head size {D}")
        shape = configure(replace(config, n_embd=width, n_head=width // D, dropout=0.0), scheme)
        runs.append([_train(build(shape, scheme, s), scheme, steps, lr, muon) for s in seeds])
        if progress:
            progress(n + 1, len(widths))
    names = tuple(runs[0][0].size)
    return Coordinates(
        tuple(widths),
        names,
        {name: [_mean([run.size[name] for run in same]) for same in runs] for name in names},
        {name: [_mean([run.change[name] for run in same]) for same in runs] for name in names},
        [_mean([run.losses for run in same]) for same in runs],
    )


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@dataclass
class _Trace:
    """One model over its steps: RMS and RMS of the change by name, and the loss."""

    size: dict[str, list[float]]
    change: dict[str, list[float]]
    losses: list[float]


def _train(model: GPT, scheme: Scheme, steps: int, lr: float, muon: bool) -> _Trace:
    """Activations before each step and after the last, on the batch that is trained on."""
    settings = recipe.Optim(
        name="muon" if muon else "adamw", lr=lr, muon_lr=10 * lr, weight_decay=0.0,
        warmup_steps=0, schedule="constant",
    )  # fmt: skip
    optimizers = Optimizers(model, settings, scheme, max_steps=steps)
    idx, targets = random_tokens(model.config, 4, min(64, model.config.block_size), seed=1)
    first: dict[str, Tensor] = {}
    trace = _Trace({}, {}, [])
    for step in range(steps + 1):
        watched: dict[str, list[Tensor]] = {}
        logits, loss = model(idx, targets, _recorder(watched))
        assert loss is not None
        watched["logits"] = [logits.detach()]
        now = {name: torch.stack(seen) for name, seen in watched.items()}
        first = first or now
        for name, value in now.items():
            trace.size.setdefault(name, []).append(rms(value))
            trace.change.setdefault(name, []).append(rms(value - first[name]))
        trace.losses.append(float(loss.detach()))
        if step < steps:
            optimizers.zero_grad()
            loss.backward()
            optimizers.set_lr(step)
            optimizers.step()
    return trace


def _recorder(into: dict[str, list[Tensor]]) -> Callable[[str, int, Tensor], None]:
    names = {"embed": "embed", "attn": "attn", "mlp": "mlp", "resid": "stream"}

    def probe(what: str, _layer: int, x: Tensor) -> None:
        if what in names:
            into.setdefault(names[what], []).append(x.detach())

    return probe
