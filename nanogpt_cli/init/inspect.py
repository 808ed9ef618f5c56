"""Measure a GPT's signals by depth while streaming its weights block by block.

Two blocks are in memory: one computes while a thread fills the other. The token embedding is
streamed in chunks of rows, once to look tokens up and once as the head; its first chunks are cached
in between. The backward pass fetches each block a second time and differentiates with respect to
the residual stream only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.init import scope
from nanogpt_cli.init.drawing import undrawn
from nanogpt_cli.init.probes import ForwardProbe, GradientProbe, Histogram, mean_cosine, rms
from nanogpt_cli.init.signals import GRADIENT_CLASSES, Signals
from nanogpt_cli.init.sources import Drawn, Observer, WeightSource, chunks, load, matrices
from nanogpt_cli.init.tensor_stats import Accumulator, TensorStats
from nanogpt_cli.machine import products
from nanogpt_cli.model.config import LAYER_NORM_EPS
from nanogpt_cli.model.gpt import Block

WTE, WPE, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
OnProgress = Callable[[int, int], None]


@dataclass
class Inspection:
    """The result of ``measure``: signals by depth, statistics of every matrix, histograms."""

    signals: Signals = field(default_factory=Signals)
    tensors: list[TensorStats] = field(default_factory=list)
    histograms: dict[str, list[Histogram]] = field(default_factory=dict)


def measure(
    source: WeightSource,
    idx: Tensor,
    targets: Tensor,
    *,
    backward: bool = True,
    layer_norm: bool = True,
    histograms: bool = False,
    progress: OnProgress | None = None,
) -> Inspection:
    """Run a source's model on tokens, block by block, and measure its signals.

    Args:
        source: source of the weights; its config includes the multipliers.
        idx, targets: (B, T) int64 token ids and next ids.
        backward: whether to compute gradients, which keeps the residual stream before every block.
        layer_norm: False replaces every LayerNorm by the identity (an ablation).
        histograms: whether to make histograms of pre-activations and residual stream by layer.
        progress: called with (blocks done, total blocks).
    """
    scope.check(source.config)
    run = _Pass(source, idx, targets, layer_norm=layer_norm, progress=progress)
    if isinstance(source, Drawn) and (source.config.tied or backward):
        run.kept = {}
    if histograms:
        run.probe.histograms = run.found.histograms
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        with products.fast():
            with torch.no_grad():
                x = run.forward(run.embed(), keep=backward)
                lse = run.head(x)
                gradient = run.head_gradient(x, lse) if backward else None
            run.kept = None
            if gradient is not None:
                run.backward(gradient)
    finally:
        torch.set_num_threads(threads)
    return run.found


class Blocks:
    """Streams the blocks of a source in any order, with two blocks in memory."""

    def __init__(self, source: WeightSource, *, layer_norm: bool) -> None:
        self.source, self.layer_norm = source, layer_norm

    def _buffer(self) -> Block:
        with undrawn():
            block = Block(self.source.config, 0)
        if not self.layer_norm:
            block.ln_1 = block.ln_2 = nn.Identity()  # type: ignore[assignment]
        return block.eval().requires_grad_(False)

    def walk(self, layers: list[int], observe: Observer | None = None) -> Iterator[Block]:
        """Yield each block in turn while a thread fills the next one.

        That thread needs a core for itself: two OpenMP teams on the same cores mostly wait.
        """
        buffers = [self._buffer() for _ in range(2)]
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            coming = pool.submit(self._load, buffers[0], layers[0], observe)
            for n in range(len(layers)):
                block = coming.result()
                if n + 1 < len(layers):
                    following = buffers[(n + 1) % 2]
                    coming = pool.submit(self._load, following, layers[n + 1], observe)
                yield block

    @torch.no_grad()
    def _load(self, block: Block, layer: int, observe: Observer | None) -> Block:
        block.layer = block.attn.layer = block.mlp.layer = layer
        for name, parameter in block.named_parameters():
            load(self.source, f"transformer.h.{layer}.{name}", parameter.detach(), observe)
        return block


class _Pass:
    """One streamed pass; the methods run in the order embed, forward, head, backward."""

    def __init__(
        self,
        source: WeightSource,
        idx: Tensor,
        targets: Tensor,
        *,
        layer_norm: bool,
        progress: OnProgress | None,
    ) -> None:
        self.source, self.config = source, source.config
        self.idx, self.targets = idx, targets.reshape(-1)
        self.progress = progress or (lambda _done, _total: None)
        self.found = Inspection()
        self.signals = self.found.signals
        self.inputs: list[Tensor] = []
        self.head_name = WTE if self.config.tied else HEAD
        self.kept: dict[int, Tensor] | None = None  # cached rows of the head if it is read twice
        self.blocks = Blocks(source, layer_norm=layer_norm)
        self.probe = ForwardProbe(self.signals, self.config.attention_scale)
        self.layer_norm = layer_norm

    def embed(self) -> Tensor:
        """Embed the input to (B, T, C), and measure both tables."""
        tokens = self._look_up(WTE, self.idx)
        positions = self._look_up(WPE, torch.arange(self.idx.shape[1]))
        token_power, position_power = rms(tokens) ** 2, rms(positions) ** 2
        total = token_power + position_power
        self.signals.token_share = token_power / total if total else math.nan
        x = (tokens + positions) * self.config.multipliers.embedding
        self._watch(x)
        return x

    def _look_up(self, name: str, ids: Tensor) -> Tensor:
        """Look up rows ``ids`` of a table that is streamed in chunks."""
        (spec,) = matrices(self.source, name)
        out = torch.empty(*ids.shape, spec.shape[1])
        seen = Accumulator(spec.shape)
        for start, rows in chunks(self.source, name, self.kept if name == self.head_name else None):
            seen.add(rows)
            here = (ids >= start) & (ids < start + len(rows))
            out[here] = rows[ids[here] - start]
        self._table(seen, name)
        return out

    def _table(self, seen: Accumulator, name: str) -> None:
        (spec,) = matrices(self.source, name)
        law = (spec.law, spec.std) if self.source.scheme else (None, math.nan)
        self.found.tensors.append(seen.stats(spec.key, spec.tensor_class, -1, *law))

    def _watch(self, x: Tensor) -> None:
        self.signals.stream_rms.append(rms(x))
        self.signals.cosine.append(mean_cosine(x))

    def forward(self, x: Tensor, *, keep: bool) -> Tensor:
        """Residual stream after the last block; ``keep`` stores it before every block."""
        layers = list(range(self.config.n_layer))
        for block in self.blocks.walk(layers, self.found.tensors.append):
            if keep:
                self.inputs.append(x)
            x = block(x, self.probe)
            self._watch(x)
            self.progress(block.layer + 1, len(layers) * (1 + keep))
        return x

    def _normalised(self, x: Tensor, observe: Observer | None = None) -> Tensor:
        """Apply the final LayerNorm to the residual stream (B, T, C); returns (N, C)."""
        x = x.reshape(-1, self.config.n_embd)
        if not self.layer_norm:
            return x
        size = (self.config.n_embd,)
        weight, bias = torch.empty(size), torch.zeros(size)
        load(self.source, "transformer.ln_f.weight", weight, observe)
        if self.config.bias:
            load(self.source, "transformer.ln_f.bias", bias, observe)
        return F.layer_norm(x, size, weight, bias, LAYER_NORM_EPS)

    def _logits(self, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, rows of the head, logits (N, rows)) per chunk of the vocabulary."""
        for start, rows in chunks(self.source, self.head_name, self.kept):
            yield start, rows, products.linear(y, rows) * self.config.multipliers.output

    def head(self, x: Tensor) -> Tensor:
        """Measure loss and logits; returns each position's log-sum-exp (N,)."""
        y = self._normalised(x, self.found.tensors.append)
        seen = None if self.config.tied else Accumulator(matrices(self.source, HEAD)[0].shape)
        N, V = len(y), self.config.vocab_size
        lse, own, target = torch.full((N,), -math.inf), torch.zeros(N), torch.zeros(N)
        total, square = torch.zeros(N).double(), torch.zeros(N).double()
        for start, rows, logits in self._logits(y):
            if seen is not None:
                seen.add(rows)
            lse = torch.logaddexp(lse, logits.logsumexp(1))
            total += logits.sum(1)
            square += logits.square().sum(1)
            for ids, out in ((self.idx.reshape(-1), own), (self.targets, target)):
                here = ((ids >= start) & (ids < start + len(rows))).nonzero().squeeze(1)
                out[here] = logits[here, ids[here] - start]
        if seen is not None:
            self._table(seen, HEAD)
        mean = total / V
        self.signals.loss = float((lse - target).double().mean())
        self.signals.loss_any = float((lse - mean).mean())
        self.signals.logit_std = math.sqrt(float((square / V - mean.square()).clamp_min(0).mean()))
        self.signals.own_logit = float((own - mean).mean())
        return lse

    def head_gradient(self, x: Tensor, lse: Tensor) -> Tensor:
        """Gradient of the mean loss with respect to the final residual stream, (B, T, C)."""
        y = self._normalised(x)
        gradient = torch.zeros_like(y)
        for start, rows, logits in self._logits(y):
            p = (logits - lse[:, None]).exp()
            here = (self.targets >= start) & (self.targets < start + len(rows))
            p[here, self.targets[here] - start] -= 1
            gradient += p @ rows
        gradient *= self.config.multipliers.output / len(y)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (back,) = torch.autograd.grad(self._normalised(leaf), leaf, gradient)
        return back

    def backward(self, gradient: Tensor) -> None:
        """Measure gradients of the residual stream and the weights, from the last block down."""
        n = self.config.n_layer
        self.signals.grad_rms = [rms(gradient)]
        self.signals.weight_grad = {name: [] for name in GRADIENT_CLASSES}
        for block in self.blocks.walk(list(reversed(range(n)))):
            leaf = self.inputs.pop().detach().requires_grad_()
            with GradientProbe(block, self.signals.weight_grad):
                (gradient,) = torch.autograd.grad(block(leaf), leaf, gradient)
            self.signals.grad_rms.append(rms(gradient))
            self.progress(2 * n - block.layer, 2 * n)
        for values in (self.signals.grad_rms, *self.signals.weight_grad.values()):
            values.reverse()
