"""The forward recursion of the mean-field theory: the residual stream's covariance by depth.

At infinite width the residual stream's vectors are jointly Gaussian, so the matrix
C_ij = E[x_i·x_j]/d over the N = B·T tokens describes them completely. It starts from which token
ids and positions are equal and follows a recursion through norms, attention and MLP; a second
matrix Γ_ij = E[g_i·g_j]/d propagates gradients (``backward_theory``). Sources: Neal 1996,
Schoenholz et al. 1611.01232 (signal propagation), Tsuchida et al. 2002.08517 (GELU kernel), Kedia
et al. 2403.09635 (transformer moments). Attention over correlated tokens is expanded to first order
in the score variance, or sampled where that is large.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.init import attention_fields as attention
from nanogpt_cli.init import drawing
from nanogpt_cli.init.attention_heads import Heads
from nanogpt_cli.init.attention_theory import Causal
from nanogpt_cli.init.blueprint import Blueprint, Layer, Variances
from nanogpt_cli.init.expert_theory import expert_agreement
from nanogpt_cli.init.kernels import KERNELS, Kernel, dead_share
from nanogpt_cli.init.loss_theory import equal, initial_loss
from nanogpt_cli.init.signals import Signals


@dataclass
class Passed:
    """What the backward recursion needs of one block.

    Attributes:
        before: (N,) variances of the stream that attention reads.
        middle: (N, N) covariance of the stream that the MLP reads.
        field: the attention.
        after: (N,) variances before the norms behind attention and MLP.
    """

    before: Tensor
    middle: Tensor
    field: attention.Field
    after: list[Tensor] = dataclasses.field(default_factory=list)


class Forward:
    """The forward recursion of one decoder on given tokens.

    Args:
        plan: the decoder.
        idx: (B, T) int64 token ids.
        targets: (B, T) int64 next ids.
        sizes: positions per group (``attention_theory.group_sizes``), for a forward pass alone;
            each by itself if ``None``. The cost grows with the square of B times their number.
        last: number of final positions whose attention is described; 0 for all.
        dropout: share of zeros in training mode; needs groups of one, and no backward pass.
    """

    def __init__(
        self,
        plan: Blueprint,
        idx: Tensor,
        targets: Tensor,
        *,
        sizes: Tensor | None = None,
        last: int = 0,
        dropout: float = 0.0,
    ) -> None:
        self.plan, self.dropout = plan, dropout
        sizes = torch.ones(idx.shape[1], dtype=torch.int64) if sizes is None else sizes
        self.places = sizes.cumsum(0) - (sizes + 1) // 2  # the position that stands for a group
        self.idx = idx[:, self.places].reshape(-1)
        self.targets = targets[:, self.places].reshape(-1)
        self.causal = Causal(len(idx), sizes, last)
        self.kernel: Kernel = KERNELS[plan.activation]
        self.out = Signals()
        self.passed: list[Passed] = []
        self.head = plan.head * plan.final_gain
        self.reads_norm = plan.placement in ("pre", "peri")
        self.heads_width = plan.n_head * plan.head_size
        # (N,) factor with which the embedding, without its multiplier, is part of the stream.
        self.written = (self.idx != plan.padding).double()
        self.kept = plan.embedding * self.written
        # (N, C) the vectors of the positions, where they are not drawn.
        self.table: Tensor | None = None
        if plan.placed_wpe:
            whole = drawing.placed(plan.placed_wpe, (int(self.places[-1]) + 1, plan.width))
            self.table = whole[self.places].repeat(self.causal.B, 1)

    def run(self, *, keep: bool) -> Tensor:
        """Covariance (N, N) of the last residual stream; ``keep`` stores two matrices per block."""
        C = start = self._embed()
        at_start = self.kept
        for layer in self.plan.layers:
            if layer.first:
                mixed = 2 * layer.carry * layer.first * (self.kept / at_start)
                C = layer.carry**2 * C + (layer.first**2 + (mixed[:, None] + mixed) / 2) * start
                self.kept = layer.carry * self.kept + layer.first * at_start
            elif layer.carry != 1:
                C, self.kept = layer.carry**2 * C, layer.carry * self.kept
            self.watch(C)
            C = self._block(C, layer, keep=keep)
        self.watch(C)
        self._finish(C)
        return C

    def through(self, C: Tensor, number: int) -> Tensor:
        """The covariance (N, N) behind block ``number`` of a stream of covariance C before it."""
        return self._block(C, self.plan.layers[number], keep=False)

    def _drop(self, C: Tensor) -> Tensor:
        """Covariance after dropout: masks of two positions are independent, so that only variances
        grow, by 1/(1-p).
        """
        if self.dropout:
            C.diagonal().div_(1 - self.dropout)
        return C

    def _embed(self) -> Tensor:
        plan = self.plan
        positions = self.places.repeat(self.causal.B)
        where = equal(positions) * plan.wpe
        if self.table is not None:
            where = self.table @ self.table.T / plan.width
        C = plan.wte * self.written * equal(self.idx) + where
        total = plan.wte + plan.wpe
        self.out.token_share = plan.wte / total if total else math.nan
        C = C * plan.embedding**2
        if plan.embedding_norm:
            self.kept = self.kept / self.size(C.diagonal())
            C = self.normalise(C, 1.0)
        return self._drop(C)

    def rms(self, C: Tensor) -> float:
        """RMS over channels and positions of vectors with covariance C."""
        return math.sqrt(max(0.0, self.causal.average(C.diagonal())))

    def watch(self, C: Tensor) -> None:
        """Note the residual stream's RMS and cosine."""
        self.out.stream_rms.append(self.rms(C))
        self.out.cosine.append(self.causal.mean_cosine(C))

    def _block(self, C: Tensor, layer: Layer, *, keep: bool) -> Tensor:
        """The residual stream behind a block."""
        w, number = layer.moments, len(self.out.attn_rms)
        branch, found = self._attend(C, layer, number)
        state = Passed(C.diagonal().clone(), C, found)
        branch = self._branch(branch, w.after_1, self.out.attn_rms, state)
        middle = C if self.plan.parallel else self._add(C, branch, w.after_1, state)
        state.middle = middle.float() if keep else middle
        mlp = self._branch(self._transform(middle, w), w.after_2, self.out.mlp_rms, state)
        if keep:
            self.passed.append(state)
        return self._add(middle + branch if self.plan.parallel else middle, mlp, w.after_2, state)

    def _branch(self, branch: Tensor, gain: float, sizes: list[float], state: Passed) -> Tensor:
        """A branch as it is added to the stream; its RMS is appended to ``sizes``."""
        if self.plan.placement in ("branch", "peri"):
            state.after.append(branch.diagonal().clone())
            branch = self.normalise(branch, gain)
        branch = self._drop(branch * self.plan.residual**2)
        sizes.append(self.rms(branch))
        return branch

    def _add(self, C: Tensor, branch: Tensor, gain: float, state: Passed) -> Tensor:
        """The stream C with a branch added to it."""
        plan = self.plan
        if plan.skip != 1:
            C, self.kept = plan.skip**2 * C, plan.skip * self.kept
        total = C + branch
        if plan.placement != "post":
            return total
        state.after.append(total.diagonal().clone())
        self.kept = math.sqrt(gain) * self.kept / self.size(total.diagonal())
        return self.normalise(total, gain)

    def _attend(self, C: Tensor, layer: Layer, number: int) -> tuple[Tensor, attention.Field]:
        """What attention adds, before a norm of its own, and the attention itself."""
        plan, w, d = self.plan, layer.moments, self.plan.width
        heads = Heads(
            plan.head_size,
            layer.attention_scale,
            q=(d * w.q, w.bias_q),
            k=(d * w.k, w.bias_k),
            norms=(w.gain_q, w.gain_k) if plan.qk_norm else None,
            eps=plan.eps,
            rope=layer.rope,
            comparison=layer.comparison,
        )
        X = self.normalise(C, w.gain_1) if self.reads_norm else C
        if layer.comparison and self.table is not None:
            factor = self.kept / self.size(C.diagonal()) * math.sqrt(w.gain_1)
            heads = dataclasses.replace(heads, places=factor[:, None] * self.table)
        found = attention.field(self.causal, X, heads, seed=number)
        self.out.score_std.append(found.score_std)
        self.out.attn_entropy.append(found.entropy)
        Y = found.mix(d * w.v, w.bias_v)
        if self.dropout:  # of the attention weights as well, each by itself
            odds = self.dropout / (1 - self.dropout)
            Y.diagonal().add_(odds * found.own_power(d * w.v, w.bias_v))
        return self.heads_width * w.attn_proj * Y + w.bias_attn, found

    def _transform(self, middle: Tensor, w: Variances) -> Tensor:
        """What the MLP adds, before a norm of its own."""
        plan = self.plan
        X = self.normalise(middle, w.gain_2) if self.reads_norm else middle
        R, value, _, _ = self.hidden(X, w)
        M = plan.hidden * w.mlp_proj * value + w.bias_mlp
        if plan.experts:
            M = M * expert_agreement(
                X,
                experts=plan.experts,
                active=plan.active,
                shares_sum=plan.shares_sum,
                gain=plan.width * w.router,
            )
        self.out.preact_std.append(self.rms(R))
        self.out.near_zero.append(self._dead_units(R))
        return M

    def hidden(self, X: Tensor, w: Variances) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The MLP's hidden layer for an input of covariance X (N, N).

        Returns:
            Covariances (N, N) of the activation's input and of the hidden units, and the factors on
            gradients towards ``fc`` and, in a gated MLP, ``gate``.
        """
        d = self.plan.width
        R = d * w.fc * X + w.bias_fc
        if not self.plan.gated:
            value, slope = self.kernel(R)
            return R, value, slope, torch.zeros(())
        gate = d * w.gate * X + w.bias_gate
        value, slope = self.kernel(gate)
        return gate, value * R, value, slope * R

    def _dead_units(self, R: Tensor) -> float:
        if self.plan.gated or self.plan.activation not in ("relu", "relu2"):
            return 0.0
        own, other, N = self.causal.pairs(R)
        return dead_share(own, other, N)

    def scale(self, variance: Tensor) -> Tensor:
        """s_i·s_j, by which a norm divides, for (N,) variances of the residual stream."""
        s = self.size(variance)
        return s[:, None] * s

    def size(self, variance: Tensor) -> Tensor:
        """s_i, by which a norm divides; ε matters at the embedding, where C_ii is 8e-4."""
        if self.plan.norm == "none":
            return torch.ones_like(variance)
        return (variance + self.plan.eps).sqrt()

    def normalise(self, C: Tensor, gain: float) -> Tensor:
        """Covariance after a norm."""
        return C if self.plan.norm == "none" else gain * C / self.scale(C.diagonal())

    def _finish(self, C: Tensor) -> None:
        plan, out = self.plan, self.out
        power = C.diagonal()
        s = self.size(power) if plan.final_norm else torch.ones_like(power)
        # ε keeps the RMS of the norm's output below 1, by 1 % where that of its input is 0.03.
        variance = plan.width * self.head * plan.output**2
        variance *= self.causal.average(power / s.square())
        own, share = torch.zeros_like(s), torch.zeros_like(s)
        if plan.tied:
            own = plan.output * self.kept * plan.width * self.head / s
            share = self.kept.square() * plan.wte / power.clamp_min(1e-300)
        repeats = (self.idx == self.targets).double()
        # The part of the token's vector orthogonal to the residual stream, and the latter's length.
        noise = variance * (1 - share.clamp(0, 1)) + own.square() / (2 * plan.width)
        out.own_logit = float(own.mean())
        out.logit_std = math.sqrt(variance + float(own.square().mean()) / plan.vocab)
        out.loss = initial_loss(plan.vocab, variance, own, noise, repeats)
        # One of all V targets is the token just read.
        out.loss_any = out.loss + float(((repeats - 1 / plan.vocab) * own).mean())
