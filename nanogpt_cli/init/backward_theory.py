"""The backward recursion: how the loss's gradient grows from the head to the embedding.

Γ_ij = E[g_i·g_j]/d for the gradients g of the residual stream. A norm divides by the size of its
input; that it passes no gradient along that input is one direction of many.
"""

from __future__ import annotations

import math

from torch import Tensor

from nanogpt_cli.init.forward_theory import Forward, Passed
from nanogpt_cli.init.loss_theory import loss_gradient


class Backward:
    """The gradients of a forward recursion that has run and kept its blocks."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self.plan, self.out = forward, forward.plan, forward.out

    def run(self, C: Tensor) -> None:
        """Propagate Γ from the loss to the embedding, recording RMS and weight gradients.

        Args:
            C: (N, N) covariance of the last residual stream.
        """
        forward, plan, out = self.forward, self.plan, self.out
        out.weight_grad = {name: [] for name in ("c_attn", "attn_proj", "fc", "mlp_proj")}
        factor = forward.head * plan.output**2
        last = forward.normalise(C, 1.0) if plan.final_norm else C
        # The mean logit of the token just read, for all but the one whose row is zero.
        own = forward.written * (out.own_logit / float(forward.written.mean().clamp_min(1e-9)))
        together = plan.width * factor * last
        G = factor * loss_gradient(together, own, forward.idx, forward.targets, plan.vocab)
        if plan.final_norm:
            G = G / forward.scale(C.diagonal())
        out.grad_rms.append(forward.rms(G))
        for number in reversed(range(len(plan.layers))):
            G = self._block(G, number) * plan.layers[number].carry ** 2
            out.grad_rms.append(forward.rms(G))
        for values in (out.grad_rms, *out.weight_grad.values()):
            values.reverse()

    def _block(self, G: Tensor, number: int) -> Tensor:
        """Γ before a block, for Γ behind it."""
        plan, state, w = self.plan, self.forward.passed[number], self.plan.layers[number].moments
        if plan.parallel:
            mlp = self._back_mlp(self._into_branch(G, state, w.after_2, 1), number)
            return G + mlp + self._back_attention(self._into_branch(G, state, w.after_1, 0), number)
        G = self._through_sum(G, state, w.after_2, 1)
        mlp = self._back_mlp(self._into_branch(G, state, w.after_2, 1), number)
        G = self._through_sum(plan.skip**2 * G + mlp, state, w.after_1, 0)
        attn = self._back_attention(self._into_branch(G, state, w.after_1, 0), number)
        return plan.skip**2 * G + attn

    def _through_sum(self, G: Tensor, state: Passed, gain: float, which: int) -> Tensor:
        """Γ before the norm behind an addition."""
        if self.plan.placement != "post":
            return G
        return gain * G / self.forward.scale(state.after[which])

    def _into_branch(self, G: Tensor, state: Passed, gain: float, which: int) -> Tensor:
        """Γ of a branch's last matrix."""
        G = G * self.plan.residual**2
        if self.plan.placement not in ("branch", "peri"):
            return G
        return gain * G / self.forward.scale(state.after[which])

    def _back_mlp(self, branch: Tensor, number: int) -> Tensor:
        plan, w, d = self.plan, self.plan.layers[number].moments, self.plan.width
        middle = self.forward.passed[number].middle.double()
        X = self.forward.normalise(middle, w.gain_2) if self.forward.reads_norm else middle
        _, value, to_fc, to_gate = self.forward.hidden(X, w)
        inner = d * w.mlp_proj * branch
        self._weight("mlp_proj", d * plan.hidden * (branch * value).sum())
        self._weight("fc", d * plan.hidden * (inner * (to_fc + to_gate) * X).sum())
        back = plan.hidden * inner * (w.fc * to_fc + w.gate * to_gate)
        return self._through_norm(back, w.gain_2, middle.diagonal())

    def _back_attention(self, branch: Tensor, number: int) -> Tensor:
        w, d, rows = self.plan.layers[number].moments, self.plan.width, self.forward.heads_width
        before, field = self.forward.passed[number].before, self.forward.passed[number].field
        # Keys and values that heads share get the sum of as many independent gradients.
        grad_q, grad_k, grad_v = field.back(d * w.attn_proj * branch, d * w.v, w.bias_v)
        self._weight("attn_proj", d * rows * (branch * field.mix(d * w.v, w.bias_v)).sum())
        self._weight("c_attn", d * rows * ((grad_q + grad_k + grad_v) * field.X).sum())
        back = rows * (w.q * grad_q + w.k * grad_k + w.v * grad_v)
        return self._through_norm(back, w.gain_1, before)

    def _through_norm(self, back: Tensor, gain: float, variance: Tensor) -> Tensor:
        """Γ before the norm of a branch's input."""
        if not self.forward.reads_norm:
            return back
        return gain * back / self.forward.scale(variance)

    def _weight(self, name: str, square: Tensor) -> None:
        self.out.weight_grad[name].append(math.sqrt(max(0.0, float(square))))
