"""Per-layer statistics of a step: weights, gradients, true updates and activations.

Activations come from a probe: a few fixed sequences of the training split through the raw module
without gradients or dropout, so values are comparable over time, between runs, and with or without
compilation. Everything is reduced on the device and moved to the host once. A sampler keeps the
cost below a share of the step time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.init.expected import QUERIES
from nanogpt_cli.machine.distributed import Group, is_split, local, norms, whole
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.model.parameters import is_block_matrix, layer_of

# What each statistic is, for help texts and axis labels. All are lists over layers.
NAMES = {
    "resid_rms": "RMS of the residual stream after the layer",
    "attn_rms": "RMS of what attention adds to the stream",
    "mlp_rms": "RMS of what the MLP adds to the stream",
    "preact_std": "standard deviation before the activation function",
    "dead": "share of MLP units silent on every sampled token",
    "attn_entropy": "attention entropy as a share of ln t (1: uniform)",
    "attn_logit_max": "largest attention logit",
    "attn_score_std": "standard deviation of attention logits",
    "weight_rms": "RMS of the layer's matrices",
    "grad_norm": "gradient norm of the layer",
    "update_ratio": "log10 of update norm over weight norm of the matrices",
}
_ACTIVATION_NAMES = (
    *("resid_rms", "attn_rms", "mlp_rms", "preact_std", "dead"),
    *("attn_entropy", "attn_logit_max", "attn_score_std"),
)
# A unit counts as silent when its output stays below this share of the layer's RMS.
_SILENT = 1e-2
_BINS = 32


class Activations:
    """A ``Probe`` that reduces what it is shown to one number per layer."""

    def __init__(self, model: GPT, *, histograms: bool = False) -> None:
        n_layer = model.config.n_layer
        self.scale = model.config.attention_scale
        self.values: dict[str, list[Tensor | None]] = {
            name: [None] * n_layer for name in _ACTIVATION_NAMES
        }
        self.histograms = histograms
        self.samples: dict[str, list[Tensor | None]] = {
            name: [None] * n_layer for name in ("resid", "preact")
        }
        self._q: Tensor | None = None

    def __call__(self, what: str, layer: int, x: Tensor) -> None:
        """Take one intermediate tensor."""
        if what in ("resid", "attn", "mlp"):
            self._put(f"{what}_rms", layer, _rms(x))
        if what == "preact":
            self._put("preact_std", layer, x.float().std())
        elif what == "hidden":
            self._put("dead", layer, _silent_share(x))
        elif what == "q":
            self._q = x
        elif what == "k" and self._q is not None:
            self._attention(layer, self._q, x)
        if self.histograms and what in self.samples:
            self.samples[what][layer] = x.detach().float().flatten()

    def complete(self) -> dict[str, list[Tensor]]:
        """The statistics every layer has reported."""
        rows = {name: [v for v in row if v is not None] for name, row in self.values.items()}
        return {
            name: row for name, row in rows.items() if row and len(row) == len(self.values[name])
        }

    def _put(self, name: str, layer: int, value: Tensor) -> None:
        self.values[name][layer] = value.detach().float()

    def _attention(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Entropy and logits of the last queries; q, k are (B, H, T, D)."""
        T = k.shape[2]
        rows = min(QUERIES, T)
        scores = (q[:, :, T - rows :].float() @ k.float().mT) * self.scale  # (B, H, rows, T)
        seen = torch.ones(rows, T, dtype=torch.bool, device=q.device).tril(T - rows)
        logits = scores.masked_select(seen)
        p = scores.masked_fill(~seen, -math.inf).softmax(-1)
        entropy = -torch.special.xlogy(p, p).sum(-1)  # (B, H, rows)
        limit = torch.arange(T - rows + 1, T + 1, device=q.device).float().log().clamp(min=1e-9)
        many = slice(1, None) if rows == T else slice(None)  # position 0 has nothing to choose
        self._put("attn_entropy", layer, (entropy / limit)[..., many].mean())
        self._put("attn_logit_max", layer, logits.max())
        self._put("attn_score_std", layer, logits.std())


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


def _silent_share(hidden: Tensor) -> Tensor:
    """Share of the units of (B, T, 4C) that are (nearly) zero on every token."""
    largest = hidden.float().abs().amax(dim=(0, 1))
    return (largest < _SILENT * _rms(hidden)).float().mean()


class Collector:
    """Measures a model around its optimizer step on sampled steps.

    Args:
        model: the raw module.
        probe_ids: (B, T) ids for the activation probe.
        every: fixed interval in steps; 0 adapts it to ``budget``.
        budget: largest share of step time.
        group: the processes of the run; all of them measure, at the same steps.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: GPT,
        probe_ids: Tensor,
        *,
        every: int,
        budget: float,
        group: Group = Group(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.probe_ids = probe_ids
        self.fixed = every
        self.budget = budget
        self.group = group
        self.clock = clock
        self.every = every or 10
        self.step_seconds = 0.0
        self.seconds = 0.0
        self._next = 0
        self._before: list[Tensor] = []
        matrices = [
            (layer_of(name), p)
            for name, p in model.named_parameters()
            if is_block_matrix(name, p.shape)
        ]
        self._layers = [layer for layer, _ in matrices]
        self._matrices: list[Tensor] = [p for _, p in matrices]

    @property
    def cost(self) -> float:
        """Share of step time spent on statistics at the present interval."""
        if self.step_seconds <= 0:
            return 0.0
        return self.seconds / (self.every * self.step_seconds)

    def due(self, step: int) -> bool:
        """Whether ``step`` is measured; a fixed interval does not depend on when a run resumed."""
        if self.fixed:
            return step % self.fixed == 0
        return self.budget > 0 and step >= self._next

    def before_update(self) -> None:
        """Remember the matrices, to measure the update itself."""
        started = self.clock()
        self._before = [local(p.detach()).clone() for p in self._matrices]
        self.seconds = self.clock() - started

    @torch.no_grad()
    def after_update(
        self, step: int, grad_norms: Mapping[str, Tensor], step_seconds: float
    ) -> dict[str, list[float]]:
        """The statistics of ``step``, and when the next ones are due.

        Args:
            step: the step just made.
            grad_norms: gradient norm of each parameter, before clipping.
            step_seconds: what a step without statistics takes.
        """
        started = self.clock()
        activations = self.activations()
        columns: dict[str, Any] = {**activations.complete(), **self._weights_and_updates()}
        columns |= self._gradients(grad_norms)
        found = _to_host(columns)
        self._before = []
        self.seconds += self.clock() - started
        self._plan(step, step_seconds)
        return found

    def activations(self, *, histograms: bool = False) -> Activations:
        """Run the probe through the raw module."""
        seen = Activations(self.model, histograms=histograms)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            self.model(self.probe_ids, probe=seen)
        self.model.train(training)
        return seen

    @torch.no_grad()
    def histograms(self) -> dict[str, Any]:
        """Weight, stream and pre-activation histograms by layer, 32 bins of common edges.

        With several processes on the first rank only; every rank must call it.
        """
        seen = self.activations(histograms=True)
        weights: list[list[Tensor]] = [[] for _ in range(self.model.config.n_layer)]
        matrices = whole({str(i): p.detach() for i, p in enumerate(self._matrices)}, self.group)
        if not matrices:
            return {}
        for layer, p in zip(self._layers, matrices.values(), strict=True):
            weights[layer].append(p.float().flatten())
        groups = {"weights": [torch.cat(matrices) for matrices in weights]}
        for name, rows in seen.samples.items():
            groups[name] = [row for row in rows if row is not None]
        found = {name: _histogram(rows) for name, rows in groups.items() if rows}
        return {name: histogram for name, histogram in found.items() if histogram}

    def _plan(self, step: int, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        if not self.fixed and step_seconds > 0:
            wanted = self.seconds / (self.budget * step_seconds)
            self.every = int(min(max(10, math.ceil(wanted)), 500))
        self.every = self.group.share(self.every)
        self._next = step + self.every

    def _weights_and_updates(self) -> dict[str, Tensor]:
        split = is_split(self._matrices[0])
        after = [local(p) for p in self._matrices]
        torch._foreach_sub_(self._before, after)
        index = torch.tensor(self._layers, device=after[0].device)
        weight, change = (
            torch.zeros(self.model.config.n_layer, device=index.device).index_add_(
                0, index, norms(tensors, self.group if split else Group()).square()
            )
            for tensors in (after, self._before)
        )
        sizes = torch.zeros_like(weight).index_add_(
            0, index, torch.tensor([float(p.numel()) for p in self._matrices], device=index.device)
        )
        return {
            "weight_rms": (weight / sizes).sqrt(),
            "update_ratio": 0.5 * (change / weight.clamp(min=1e-30)).log10(),
        }

    def _gradients(self, grad_norms: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        total: list[Tensor | None] = [None] * self.model.config.n_layer
        for name, norm in grad_norms.items():
            layer = layer_of(name)
            if layer >= 0:
                square = norm.float().square()
                before = total[layer]
                total[layer] = square if before is None else before + square
        found = [value.sqrt() for value in total if value is not None]
        return {"grad_norm": found} if len(found) == len(total) else {}


def _to_host(columns: Mapping[str, Any]) -> dict[str, list[float]]:
    """One transfer for all statistics; values rounded to 6 significant digits."""
    names = list(columns)
    table = torch.stack([torch.stack(list(columns[name])) for name in names]).tolist()
    return {
        name: [float(f"{value:.6g}") for value in row]
        for name, row in zip(names, table, strict=True)
    }


def _histogram(rows: list[Tensor]) -> dict[str, Any]:
    """Counts per row over common edges from the smallest to the largest finite value.

    Empty where nothing is finite.
    """
    finite = [row[torch.isfinite(row)] for row in rows]
    if not any(row.numel() for row in finite):
        return {}
    ends = torch.stack([torch.stack(list(torch.aminmax(row))) for row in finite if row.numel()])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    high = high if high > low else low + 1e-6
    counts = [torch.histc(row, _BINS, low, high).int().tolist() for row in finite]
    edges = torch.linspace(low, high, _BINS + 1).tolist()
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts}
