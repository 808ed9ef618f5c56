"""Per-layer statistics of a step: weights, gradients, true updates and activations.

Activations come from a probe: a few fixed sequences of the training split through the raw module
in the run's number format, without gradients or dropout, so values are comparable over time,
between runs, and with or without compilation. Everything is reduced on the device and moved to the
host once. A sampler keeps the cost below a share of the step time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.distributed import Group, is_split, local, norms, whole
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.model.parameters import is_block_matrix, layer_of
from nanogpt_cli.training.activations import Activations
from nanogpt_cli.training.histograms import histograms

# What each statistic is, for help texts and axis labels. All are lists over layers.
NAMES = {
    "resid_rms": "RMS of the residual stream after the layer",
    "resid_kurtosis": "kurtosis of the residual stream over its channels (3: normal distribution)",
    "attn_rms": "RMS of what attention adds to the stream",
    "mlp_rms": "RMS of what the MLP adds to the stream",
    "preact_std": "standard deviation before the activation function",
    "dead": "share of MLP units silent on every sampled token",
    "attn_entropy": "attention entropy as a share of ln t (1: uniform)",
    "attn_entropy_min": "the same of the head that has least",
    "attn_first": "share of attention on the first token",
    "attn_logit_max": "largest attention logit",
    "attn_score_std": "standard deviation of attention logits",
    "weight_rms": "RMS of the layer's matrices",
    "grad_norm": "gradient norm of the layer",
    "update_ratio": "log10 of update norm over weight norm of the matrices",
}


class Collector:
    """Measures a model around its optimizer step on sampled steps.

    Args:
        model: the raw module.
        probe_ids: (B, T) ids for the activation probe.
        device: where and how the model computes.
        every: fixed interval in steps; 0 adapts it to ``budget``.
        budget: largest share of step time.
        group: the processes of the run; all of them measure, at the same steps.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: GPT,
        probe_ids: Tensor,
        device: Device,
        *,
        every: int,
        budget: float,
        group: Group = Group(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.probe_ids = probe_ids
        self.device = device
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
        # Copied to the device here, because a copy waits for what the device has to do.
        self._index = torch.tensor(self._layers, device=probe_ids.device)
        sizes = torch.tensor([float(p.numel()) for p in self._matrices], device=probe_ids.device)
        self._sizes = self._by_layer(sizes)

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
        started = self._now()
        self._before = [local(p.detach()).clone() for p in self._matrices]
        self.seconds = self._now() - started

    def _now(self) -> float:
        """The clock after all that the device was given to do: what came before is not our cost."""
        self.device.synchronize()
        return self.clock()

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
        started = self._now()
        found = _to_host(self._columns(grad_norms))
        self.seconds += self._now() - started
        self._plan(step, step_seconds)
        return found

    def rehearse(self) -> None:
        """Measure everything once for nothing; every rank must call it."""
        self.before_update()
        with torch.no_grad():
            _to_host(self._columns({}))
        self.histograms()

    def _columns(self, grad_norms: Mapping[str, Tensor]) -> dict[str, Any]:
        """Each statistic over the layers, on the device, after ``before_update`` and an update."""
        columns: dict[str, Any] = {**self.activations().complete(), **self._weights_and_updates()}
        self._before = []
        return columns | self._gradients(grad_norms)

    def activations(self, *, histograms: bool = False) -> Activations:
        """Run the probe through the raw module."""
        seen = Activations(self.model, self.device, histograms=histograms)
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.device.autocast(), self._eager():
            self.model(self.probe_ids, probe=seen)
        self.model.train(training)
        return seen

    def _eager(self) -> contextlib.AbstractContextManager[object]:
        """The context in which blocks that were compiled one by one run as they are written."""
        if not self.device.compile:  # the compiler takes seconds to import
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    @torch.no_grad()
    def histograms(self) -> dict[str, Any]:
        """Weight, stream and pre-activation histograms by layer, 32 bins of common edges.

        With several processes on the first rank only; every rank must call it.
        """
        seen = self.activations(histograms=True)
        matrices = {str(number): p.detach() for number, p in enumerate(self._matrices)}
        if is_split(self._matrices[0]):
            matrices = whole(matrices, self.group)
        if not self.group.leads:
            return {}
        weights: list[list[Tensor]] = [[] for _ in range(self.model.config.n_layer)]
        for layer, p in zip(self._layers, matrices.values(), strict=True):
            weights[layer].append(p)
        groups: dict[str, list[list[Tensor]]] = {"weights": weights}
        for name, samples in seen.samples.items():
            groups[name] = [[x] for x in samples if x is not None]
        return histograms({name: rows for name, rows in groups.items() if rows})

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
        weight, change = (
            self._by_layer(norms(tensors, self.group if split else Group()).square())
            for tensors in (after, self._before)
        )
        return {
            "weight_rms": (weight / self._sizes).sqrt(),
            "update_ratio": 0.5 * (change / weight.clamp(min=1e-30)).log10(),
        }

    def _by_layer(self, values: Tensor) -> Tensor:
        """Sums of one value a matrix over the matrices of each layer."""
        total = torch.zeros(self.model.config.n_layer, device=values.device)
        return total.index_add_(0, self._index, values)

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
