"""Coordinate check: do activations keep their size over width or depth through the first steps?

After Yang et al. 2203.03466, appendix D.1, and microsoft/mup's ``coord_check``: train the same net
at several widths for a few steps and look at how large each activation is and how far it has
moved. In a right parametrisation the change is as large at every width; in the standard one it
grows, and the best learning rate of a small model is too large for a wide one. Dey et al.
2505.01618 (figure 7) do the same over depth.

Sizes are fitted by width^exponent. An exponent is wrong on both sides: what grows will diverge, and
what shrinks is not learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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

# How far an exponent may be from the expected one. On sizes as small as those of a check, right
# parametrisations are within 0.28 and wrong ones beyond 0.57 (docs/initialisation.md).
TOLERANCE = 0.35
STEPS = 4
# By what is watched, the lowest and highest exponent that theory allows for the size before the
# first step and for the change. Random sums may shrink as 1/√width, so logits may before they are
# trained; their change has a part that does (words that are no target) and one that must not (the
# target's logit). The 2L branches of a deep model add up to a stream that neither grows nor
# shrinks: each is between 1/√L, if they are independent, and 1/L, if they move together.
_STEADY, _SHRINKING, _BRANCH = (0.0, 0.0), (-0.5, 0.0), (-1.0, -0.5)
EXPECTED: dict[str, dict[str, tuple[tuple[float, float] | None, tuple[float, float]]]] = {
    "width": {
        "embed": (_STEADY, _STEADY),
        "scores": (_SHRINKING, _STEADY),
        "attn": (_STEADY, _STEADY),
        "mlp": (_STEADY, _STEADY),
        "stream": (_STEADY, _STEADY),
        "logits": (_SHRINKING, _SHRINKING),
        "target": (None, _STEADY),
    },
    "depth": {
        "embed": (_STEADY, _STEADY),
        "scores": (_STEADY, _STEADY),
        "attn": (_BRANCH, _BRANCH),
        "mlp": (_BRANCH, _BRANCH),
        "stream": (_SHRINKING, _STEADY),
        "logits": (_STEADY, _STEADY),
        "target": (None, _STEADY),
    },
}


@dataclass(frozen=True)
class Exponent:
    """How one quantity follows width or depth.

    Attributes:
        name: what was watched.
        what: "size" before the first step, or "change" since then, the mean over the steps.
        value: exponent of width or depth; NaN where the quantity is zero.
        low, high: what theory allows, without ``TOLERANCE``.
    """

    name: str
    what: str
    value: float
    low: float
    high: float

    @property
    def excess(self) -> float:
        """How far it is outside of what theory allows: above 0 it grows, below 0 it shrinks."""
        if self.value > self.high:
            return self.value - self.high
        return min(0.0, self.value - self.low)

    @property
    def right(self) -> bool:
        """Whether it is within ``TOLERANCE`` of what theory allows."""
        return math.isnan(self.value) or abs(self.excess) <= TOLERANCE


@dataclass(frozen=True)
class Coordinates:
    """Sizes over width or depth, and step.

    Attributes:
        over: "width" or "depth".
        scales: channels, or layers, of each model.
        names: what was watched: embed, scores (of attention), attn, mlp (branches as they are
            added), stream (after the last block), logits, target (logits of the next token, above
            the mean logit).
        size: by name, RMS [model][step], step 0 before the first update.
        change: by name, RMS of the difference from step 0, [model][step].
        losses: [model][step].
    """

    over: str
    scales: tuple[int, ...]
    names: tuple[str, ...]
    size: dict[str, list[list[float]]]
    change: dict[str, list[list[float]]]
    losses: list[list[float]]

    def slope(self, name: str, step: int = -1, what: str = "change") -> float:
        """Least-squares slope of log(size or change at a step) over log(width or depth).

        NaN where it is zero or not finite.
        """
        rows = [row[step] for row in getattr(self, what)[name]]
        if not all(0 < value < math.inf for value in rows):
            return math.nan
        x, y = [math.log(s) for s in self.scales], [math.log(value) for value in rows]
        mx, my = sum(x) / len(x), sum(y) / len(y)
        pairs = zip(x, y, strict=True)
        return sum((a - mx) * (b - my) for a, b in pairs) / sum((a - mx) ** 2 for a in x)

    def exponents(self) -> Iterator[Exponent]:
        """Each quantity's size before the first step, where theory says it, and its change."""
        steps = range(1, len(self.losses[0]))
        for name in self.names:
            size, change = EXPECTED[self.over][name]
            if size is not None:
                yield Exponent(name, "size", self.slope(name, 0, "size"), *size)
            slopes = [self.slope(name, step) for step in steps]
            yield Exponent(name, "change", sum(slopes) / len(slopes), *change)

    @property
    def worst(self) -> Exponent:
        """The exponent that is farthest from what theory allows."""
        return max(self.exponents(), key=lambda e: 0.0 if math.isnan(e.value) else abs(e.excess))

    @property
    def transfers(self) -> bool:
        """Whether every exponent is right, so that one learning rate may serve all sizes."""
        finite = all(math.isfinite(loss) for row in self.losses for loss in row)
        return finite and all(e.right for e in self.exponents())


def coord_check(
    config: GPTConfig,
    scheme: Scheme,
    scales: Sequence[int],
    *,
    over: str = "width",
    steps: int = STEPS,
    lr: float = 1e-3,
    seeds: Sequence[int] = (0, 1),
    optimizer: str = "adamw",
    progress: Callable[[int, int], None] | None = None,
) -> Coordinates:
    """Train at several widths or depths for a few steps on one batch of random tokens.

    Args:
        config: everything else; heads keep their size.
        scheme: its multipliers and factors apply for each width and depth.
        scales: at least two widths, multiples of the head size, or depths.
        over: "width" or "depth".
        steps: updates.
        lr: for the base width and depth; the scheme's factors apply per class. Large ones leave the
            first few steps' linear regime, where width says nothing.
        seeds: of the models; sizes are averaged over them.
        optimizer: "adamw", or "muon" for the blocks' matrices, at ten times the rate.
        progress: called with (models done, models).

    Raises:
        UserError: fewer than two sizes, or a width that heads do not divide.
    """
    if len(set(scales)) < 2:
        raise UserError(f"a coordinate check needs at least two {over}s", f"--{over}s 64,128,256")
    runs: list[list[_Trace]] = []
    for n, shape in enumerate(_shapes(config, over, scales)):
        ready = configure(shape, scheme)
        runs.append([_train(build(ready, scheme, s), scheme, steps, lr, optimizer) for s in seeds])
        if progress:
            progress(n + 1, len(scales))
    names = tuple(runs[0][0].size)
    return Coordinates(
        over,
        tuple(scales),
        names,
        {name: [_mean([run.size[name] for run in same]) for same in runs] for name in names},
        {name: [_mean([run.change[name] for run in same]) for same in runs] for name in names},
        [_mean([run.losses for run in same]) for same in runs],
    )


def _shapes(config: GPTConfig, over: str, scales: Sequence[int]) -> list[GPTConfig]:
    if over == "depth":
        return [replace(config, n_layer=n, dropout=0.0) for n in scales]
    D = min(config.head_size, *scales)
    for width in scales:
        if width % D:
            raise UserError(f"width {width} is not a multiple of the head size {D}")
    if config.position == "rope" and D % 2:
        raise UserError(f"heads of {D} channels are odd, and rope turns pairs of channels")
    return [replace(config.widened(w, D), dropout=0.0) for w in scales]


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@dataclass
class _Trace:
    """One model over its steps: RMS and RMS of the change by name, and the loss."""

    size: dict[str, list[float]]
    change: dict[str, list[float]]
    losses: list[float]


def _train(model: GPT, scheme: Scheme, steps: int, lr: float, optimizer: str) -> _Trace:
    """Activations before each step and after the last, on the batch that is trained on."""
    settings = recipe.Optim.model_validate(
        {"name": optimizer, "lr": lr, "muon_lr": 10 * lr, "weight_decay": 0.0,
         "warmup_steps": 0, "schedule": "constant"}
    )  # fmt: skip
    optimizers = Optimizers(model, settings, scheme, max_steps=steps)
    idx, targets = random_tokens(model.config, 4, min(64, model.config.block_size), seed=1)
    first: dict[str, Tensor] = {}
    trace = _Trace({}, {}, [])
    for step in range(steps + 1):
        watched: dict[str, list[Tensor]] = {}
        logits, loss = model(idx, targets, _recorder(watched, model.config.attention_scale))
        assert loss is not None
        watched["logits"] = [logits.detach()]
        above = logits.detach() - logits.detach().mean(-1, keepdim=True)
        watched["target"] = [above.gather(-1, targets[..., None])]
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


def _recorder(into: dict[str, list[Tensor]], scale: float) -> Callable[[str, int, Tensor], None]:
    """A probe that keeps what is watched: of every layer, but of the stream only the last."""
    queries: list[Tensor] = []

    def probe(what: str, _layer: int, x: Tensor) -> None:
        x = x.detach()
        if what == "q":
            queries.append(x)
        elif what == "k":
            into.setdefault("scores", []).append((scale * queries.pop() @ x.mT).tril())
        elif what == "resid":
            into["stream"] = [x]
        elif what in ("embed", "attn", "mlp"):
            into.setdefault(what, []).append(x)

    return probe
