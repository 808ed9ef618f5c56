"""Probes that measure a block while it runs: RMS, attention, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.init.signals import Signals
from nanogpt_cli.model.gpt import Block

# A hidden unit is dead if its activation never exceeds this share of the layer's RMS.
NEAR_ZERO = 0.01
_SCORES_AT_ONCE = 1 << 17  # as many as fit a core's private cache
_STRIP = 64
_BINS, _REACH = 41, 4.1


@dataclass(frozen=True)
class Histogram:
    """Counts of one layer's values between equally spaced edges, in units of their RMS."""

    rms: float
    low: float
    high: float
    counts: tuple[int, ...]


def rms(x: Tensor) -> float:
    """Root mean square over all entries, summed along the last axis first, then in float64."""
    return math.sqrt(float(torch.linalg.vector_norm(x, dim=-1).double().square().sum()) / x.numel())


def mean_cosine(x: Tensor) -> float:
    """Mean cosine similarity between different positions of a sequence, x (B, T, C)."""
    B, T, _ = x.shape
    if T < 2:
        return math.nan
    unit = F.normalize(x.double(), dim=-1)
    return float((unit.sum(1).square().sum() - unit.square().sum()) / (B * T * (T - 1)))


def histogram(x: Tensor) -> Histogram:
    """Histogram of x divided by its RMS, between ±4.1."""
    size = rms(x)
    counts = torch.histc(x.float() / (size or 1.0), _BINS, -_REACH, _REACH)
    return Histogram(size, -_REACH, _REACH, tuple(int(c) for c in counts))


class ForwardProbe:
    """A ``model.gpt.Probe`` that appends one number per block to each list of ``Signals``."""

    def __init__(self, signals: Signals, scale: float) -> None:
        self.signals, self.scale = signals, scale
        self.histograms: dict[str, list[Histogram]] | None = None
        self._q = torch.empty(0)

    def __call__(self, what: str, _layer: int, x: Tensor) -> None:
        """Measure the tensor ``x`` of the running block by its name ``what``."""
        if what == "q":
            self._q = x
        elif what == "k":
            score, entropy = attention_statistics(self._q, x, self.scale)
            self.signals.score_std.append(score)
            self.signals.attn_entropy.append(entropy)
        elif what in ("attn", "mlp"):
            getattr(self.signals, f"{what}_rms").append(rms(x))
        elif what == "preact":
            self.signals.preact_std.append(rms(x))
        elif what == "hidden":
            units = x.flatten(0, -2)
            largest = torch.maximum(units.amax(0), -units.amin(0))
            self.signals.near_zero.append(float((largest <= NEAR_ZERO * rms(x)).double().mean()))
        if self.histograms is not None and what in ("preact", "resid"):
            self.histograms.setdefault(what, []).append(histogram(x))


def causal_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights of scores (…, R, T) that are zero where masked, and their entropy.

    The R queries are the last of T positions. Entropy (…, R) in nats is log Σ exp - Σ w·s, where
    log Σ exp is s - ln w of the largest entry, because torch.logsumexp takes ten times as long.
    """
    R, T = scores.shape[-2:]
    visible = scores + torch.full((R, T), -math.inf).triu_(1 + T - R)
    weights = visible.softmax(-1)
    lse = visible.amax(-1) - weights.amax(-1).log()
    return weights, lse - torch.linalg.vecdot(weights, scores)


def attention_statistics(q: Tensor, k: Tensor, scale: float) -> tuple[float, float]:
    """RMS of the unmasked scores, and entropy divided by ln t, averaged over positions t ≥ 2.

    Args:
        q, k: (B, H, T, D).
        scale: factor on query·key.
    """
    B, H, T, D = q.shape
    square = entropy = 0.0
    log_t = torch.arange(1, T + 1).log()
    log_t[0] = math.inf  # the first position sees only itself and is left out
    queries, keys = (scale * q).reshape(-1, T, D), k.reshape(-1, T, D)
    # Each strip of queries takes only the keys that its last query sees: half of all scores.
    for first in range(0, T, _STRIP):
        end = min(T, first + _STRIP)
        group = max(1, _SCORES_AT_ONCE // ((end - first) * end))
        for h in range(0, B * H, group):
            strip = queries[h : h + group, first:end] @ keys[h : h + group, :end].mT
            scores = strip.tril_(first)
            square += rms(scores) ** 2 * scores.numel()
            entropy += float((causal_softmax(scores)[1] / log_t[first:end]).double().sum())
    pairs = B * H * T * (T + 1) / 2
    uniform = 1.0 if T < 2 else entropy / (B * H * (T - 1))
    return math.sqrt(square / pairs), uniform


class GradientProbe:
    """Context in which a backward pass through a block records the norms of weight gradients."""

    def __init__(self, block: Block, norms: dict[str, list[float]]) -> None:
        matrices: dict[str, nn.Module] = {
            "c_attn": block.attn.c_attn,
            "attn_proj": block.attn.c_proj,
            "fc": block.mlp.c_fc,
            "mlp_proj": block.mlp.c_proj,
        }
        self.handles = [
            module.register_forward_hook(self._watch(norms[name]))
            for name, module in matrices.items()
        ]

    @staticmethod
    def _watch(into: list[float]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda g: into.append(gradient_norm(g, x))
            )

        return hook

    def __enter__(self) -> GradientProbe:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def gradient_norm(g: Tensor, x: Tensor) -> float:
    """‖GᵀX‖_F for output gradients G and inputs X of a linear layer, without forming GᵀX.

    ‖GᵀX‖² = Σ (GGᵀ)∘(XXᵀ): two (N, N) matrices instead of a weight-sized one.
    """
    G, X = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    square = torch.linalg.vecdot((G @ G.T).flatten().double(), (X @ X.T).flatten().double())
    return math.sqrt(max(0.0, float(square)))
