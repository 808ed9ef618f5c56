"""A decoder's forward pass made from a plan alone, to check that the plan describes the module.

It shares nothing with the module but its parameters. Shapes: B batch, T time, C width, H heads, D
channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.init.blueprint import Blueprint, Layer
from nanogpt_cli.model.mlp import ACTIVATIONS
from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.plan import Parts, Plan

# Above this difference of logits, relative to the largest, a plan does not describe the module.
TOLERANCE = 1e-3
# Gives the values of a parameter by its name.
Values = Callable[[str], Tensor]


class Reference:
    """The pass of one plan on token ids (B, T); call ``embed``, ``block`` in order, then ``head``.

    Args:
        plan: from ``blueprint.plan_of``.
        ids: (B, T) int64.
    """

    def __init__(self, plan: Plan, ids: Tensor) -> None:
        self.plan, self.shape, self.ids = plan, plan.blueprint, ids
        self.x = self.start = torch.empty(0)

    def embed(self, values: Values) -> None:
        """The stream's first value, (B, T, C)."""
        x = sum(self.rows(name, values) for name in ("wte", "wpe") if name in self.plan.outside)
        self.start_from(torch.as_tensor(x))

    def rows(self, name: str, values: Values) -> Tensor:
        """What the table ``name`` adds to the stream: tokens (B, T, C) or positions (T, C)."""
        table = values(self.plan.outside[name].parameter)
        first, T = self.plan.first_position, self.ids.shape[1]
        return (table[self.ids] if name == "wte" else table[first : first + T]).float()

    def start_from(self, x: Tensor) -> None:
        """Begin with the sum of the tables' rows, (B, T, C)."""
        x = x * self.shape.embedding
        self.x = self.start = self._plain_norm(x) if self.shape.embedding_norm else x

    def block(self, number: int, values: Values) -> None:
        """Run block ``number`` on the stream."""
        shape, layer, parts = self.shape, self.shape.layers[number], self.plan.blocks[number]
        x = layer.carry * self.x + layer.first * self.start if layer.first else self.x * layer.carry
        before = shape.placement in ("pre", "peri")
        behind = shape.placement in ("branch", "peri")

        def branch(x: Tensor, which: int) -> Tensor:
            h = self._norm(x, parts, f"norm_{which}", values) if before else x
            run = self._attend if which == 1 else self._transform
            h = run(h, layer, parts, values)
            if behind:
                h = self._norm(h, parts, f"after_{which}", values)
            return h * shape.residual

        def add(x: Tensor, h: Tensor, which: int) -> Tensor:
            total = shape.skip * x + h
            if shape.placement == "post":
                return self._norm(total, parts, f"after_{which}", values)
            return total

        if shape.parallel:
            self.x = shape.skip * x + branch(x, 1) + branch(x, 2)
            return
        x = add(x, branch(x, 1), 1)
        self.x = add(x, branch(x, 2), 2)

    def head(self, values: Values) -> Tensor:
        """Logits (B, T, V)."""
        outside, shape = self.plan.outside, self.shape
        x = self._norm(self.x, outside, "final", values) if shape.final_norm else self.x
        rows = values(outside["wte" if shape.tied else "lm_head"].parameter).float()
        logits = F.linear(x, rows) * shape.output
        if "lm_head.bias" in outside:
            logits = logits + values(outside["lm_head.bias"].parameter)
        return _capped(logits, shape.logit_cap)

    def _norm(self, x: Tensor, parts: Parts, name: str, values: Values, kind: str = "") -> Tensor:
        """x normalised over its last axis, with the gain and bias of the part ``name``.

        ``kind`` is "layer" or "rms"; by default it is that of the stream's norms.
        """
        x = self._plain_norm(x, kind)
        if name in parts:
            x = x * (_of(parts[name], values) + self.plan.offset)
        if f"{name}.bias" in parts:
            x = x + _of(parts[f"{name}.bias"], values)
        return x

    def _plain_norm(self, x: Tensor, kind: str = "") -> Tensor:
        if (kind or self.shape.norm) == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + self.shape.eps).rsqrt()

    def _attend(self, x: Tensor, layer: Layer, parts: Parts, values: Values) -> Tensor:
        shape, (B, T, _) = self.shape, x.shape
        D, H, shared = shape.head_size, shape.n_head, shape.n_kv_head
        q, k, v = (_linear(x, parts, name, values) for name in "qkv")
        if shape.qk_norm:
            q, k = (self._qk_norm(t, parts, n, values) for t, n in ((q, "q_norm"), (k, "k_norm")))
        q = self._turn(q.view(B, T, H, D).transpose(1, 2), layer)
        k = self._turn(k.view(B, T, shared, D).transpose(1, 2), layer)
        v = v.view(B, T, shared, D).transpose(1, 2)
        k, v = (t.repeat_interleave(H // shared, 1) for t in (k, v))
        scores = _capped(layer.attention_scale * q @ k.mT, shape.score_cap)  # (B, H, T, T)
        distance = torch.arange(T)[:, None] - torch.arange(T)
        hidden = (distance < 0) | (distance >= (layer.window or T))
        y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        return _linear(y.transpose(1, 2).reshape(B, T, H * D), parts, "attn_proj", values)

    def _qk_norm(self, t: Tensor, parts: Parts, name: str, values: Values) -> Tensor:
        """Queries or keys normalised per head, or over all heads where the gain is that long.

        It is RMSNorm in every family, also where the stream has LayerNorm.
        """
        D = self.shape.head_size
        whole = name in parts and len(_of(parts[name], values)) != D
        if whole:
            return self._norm(t, parts, name, values, "rms")
        heads = t.reshape(*t.shape[:-1], -1, D)
        return self._norm(heads, parts, name, values, "rms").flatten(-2)

    def _turn(self, x: Tensor, layer: Layer) -> Tensor:
        """Queries or keys (B, H, T, D) turned by their positions."""
        pairs = len(layer.rope)
        if not pairs:
            return x
        angles = torch.arange(x.shape[2])[:, None] * torch.tensor(layer.rope)
        cos, sin = angles.cos(), angles.sin()  # (T, pairs)
        turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if self.plan.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            both = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            both = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([both, rest], -1)

    def _transform(self, x: Tensor, _layer: Layer, parts: Parts, values: Values) -> Tensor:
        shape = self.shape
        if shape.experts:
            return self._mix(x, parts, values)
        h = _linear(x, parts, "gate" if shape.gated else "fc", values)
        h = ACTIVATIONS[shape.activation](h)
        if shape.gated:
            h = h * _linear(x, parts, "fc", values)
        return _linear(h, parts, "mlp_proj", values)

    def _mix(self, x: Tensor, parts: Parts, values: Values) -> Tensor:
        """Every expert on every token, and the sum of the active ones."""
        shape: Blueprint = self.shape
        logits = F.linear(x, _of(parts["router"], values))
        best = logits.topk(shape.active, -1)
        share = best.values.softmax(-1)
        if not shape.shares_sum:
            share = logits.softmax(-1).gather(-1, best.indices)
        weights = torch.zeros_like(logits).scatter(-1, best.indices, share)  # (B, T, E)
        gate, fc, proj = (
            torch.stack(_of(parts[name], values).chunk(shape.experts))
            for name in ("gate", "fc", "mlp_proj")
        )
        h = ACTIVATIONS[shape.activation](torch.einsum("btc,ehc->bteh", x, gate))
        h = h * torch.einsum("btc,ehc->bteh", x, fc) * weights[..., None]
        return torch.einsum("bteh,ech->btc", h, proj)


def agrees(module: nn.Module, plan: Plan, ids: Tensor) -> float:
    """Largest difference between the module's logits and the reference's, over the largest logit.

    Args:
        module: with values, in evaluation mode; its output is a tensor, begins with one or has
            ``logits``.
        plan: what is claimed of it.
        ids: (B, T) token ids.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    reference = Reference(plan, ids)
    with torch.no_grad():
        own = logits_of(module(ids))
        try:
            reference.embed(parameters.__getitem__)
            for number in range(len(plan.blocks)):
                reference.block(number, parameters.__getitem__)
            other = reference.head(parameters.__getitem__)
        except (RuntimeError, IndexError):  # its shapes are not those of the plan
            return math.inf
    return apart(own, other)


def apart(own: Tensor, other: Tensor) -> float:
    """Largest difference between a module's logits and others, over its largest logit."""
    own, other = own.detach().float(), other.detach().float()
    if own.shape != other.shape:  # nanoGPT computes the last position alone
        other = other[:, -own.shape[1] :]
        if own.shape != other.shape:
            return math.inf
    return float((own - other).abs().max() / own.abs().max().clamp_min(1e-30))


def logits_of(output: object) -> Tensor:
    """The logits in what a module returned.

    Raises:
        TypeError: there are none.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"a {type(output).__name__} holds no logits")
    return found


def _of(part: Part, values: Values) -> Tensor:
    return part.of(values(part.parameter)).float()


def _linear(x: Tensor, parts: Parts, name: str, values: Values) -> Tensor:
    bias = parts.get(f"{name}.bias")
    return F.linear(x, _of(parts[name], values), None if bias is None else _of(bias, values))


def _capped(x: Tensor, cap: float) -> Tensor:
    return cap * (x / cap).tanh() if cap else x
