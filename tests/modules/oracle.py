"""What plain hooks on a model's named modules measure; nothing of `nanogpt_cli` is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from architectures import Names
from torch import Tensor, nn
from torch.nn import functional as F


def logits_of(module: nn.Module, ids: Tensor) -> Tensor:
    """The logits of a model of `transformers`, or of a module that gives them itself."""
    if hasattr(module, "generation_config"):
        logits: Tensor = module(ids, use_cache=False).logits
        return logits
    return _first(module(ids))


def _first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def _rms(x: Tensor) -> float:
    return float(np.sqrt(np.mean(np.square(x.detach().double().numpy()))))


class Hooked:
    """Tensors that plain hooks see during one forward pass with eager attention."""

    def __init__(self, module: nn.Module, names: Names) -> None:
        self.stream: list[Tensor] = []
        self.attn: list[Tensor] = []
        self.mlp: list[Tensor] = []
        self.act: list[list[Tensor]] = []
        self.down: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.names = names
        self.blocks = list(module.get_submodule(names.blocks))  # type: ignore[call-overload]
        for block in self.blocks:
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
            self._result(block, names.attn, self.attn)
            self._result(block, names.mlp, self.mlp)
            if names.act:
                block.get_submodule(names.act).register_forward_pre_hook(
                    lambda _, args: self.act[-1].append(args[0].detach().clone())
                )
            if names.down:
                block.get_submodule(names.down).register_forward_pre_hook(
                    lambda _, args: self.down.append(args[0].detach())
                )
        self.blocks[-1].register_forward_hook(lambda _, args, out: self.stream.append(_first(out)))

    def _enter(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.stream.append(args[0] if args else kwargs["hidden_states"])
        self.act.append([])

    def _result(self, block: nn.Module, name: str, into: list[Tensor]) -> None:
        block.get_submodule(name).register_forward_hook(
            lambda _, args, out: into.append(_first(out).detach().clone())
        )

    @contextmanager
    def softmaxes(self) -> Iterator[None]:
        """Keep the arguments of every softmax over keys."""
        softmax, fused = F.softmax, F.scaled_dot_product_attention

        def kept(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if x.dim() == 4:
                self.scores.append(x.detach())
            return softmax(x, *args, **kwargs)

        def attend(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scale = kwargs.get("scale") or q.shape[-1] ** -0.5
            keys = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
            self.scores.append(scale * (q @ keys.mT))
            return fused(q, k, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "softmax", kept)
            patch.setattr(F, "scaled_dot_product_attention", attend)
            yield

    def numbers(self) -> dict[str, list[float]]:
        """The lists of ``Signals`` that these tensors give."""
        factor = self.names.factor
        found = {
            "stream_rms": [_rms(x) for x in self.stream],
            "cosine": [_cosine(x) for x in self.stream],
            "attn_rms": [factor * _rms(x) for x in self.attn],
            "mlp_rms": [factor * _rms(x) for x in self.mlp],
        }
        if self.names.act:
            found["preact_std"] = [_rms(torch.cat([x.flatten() for x in xs])) for xs in self.act]
        if self.names.down:
            found["near_zero"] = [_dead(x) for x in self.down]
        if self.scores:
            found["score_std"], found["attn_entropy"] = (
                list(v) for v in zip(*map(_attention, self.scores), strict=True)
            )
        return found


def _cosine(x: Tensor) -> float:
    unit = x.detach().double().numpy()
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    T = unit.shape[1]
    pairs = unit @ unit.transpose(0, 2, 1)
    return float(np.mean([p[~np.eye(T, dtype=bool)].mean() for p in pairs]))


def _dead(x: Tensor) -> float:
    units = np.abs(x.numpy().reshape(-1, x.shape[-1]))
    return float(np.mean(units.max(0) <= 0.01 * _rms(x)))


def _attention(scores: Tensor) -> tuple[float, float]:
    T = scores.shape[-1]
    s = scores.double().numpy()
    shares = []
    for t in range(1, T):
        p = np.exp(s[..., t, : t + 1] - s[..., t, : t + 1].max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        shares.append((-(p * np.log(p)).sum(-1) / math.log(t + 1)).mean())
    visible = s[..., np.tril(np.ones((T, T), dtype=bool))]
    return float(np.sqrt(np.mean(visible**2))), float(np.mean(shares))


def gradients(
    module: nn.Module, hooked: Hooked, ids: Tensor, targets: Tensor
) -> tuple[list[float], dict[str, list[float]]]:
    """RMS of the loss gradient of the stream, and norms of the gradients of matrices by block."""
    hooked.stream.clear()
    logits = logits_of(module, ids)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    names = hooked.names
    classes = {"c_attn": names.qkv, "attn_proj": names.out, "fc": names.fc, "mlp_proj": names.proj}
    wanted = [
        (kind, block.get_parameter(name))
        for block in hooked.blocks
        for kind, several in classes.items()
        for name in several.split()
    ]
    streams = list(hooked.stream)
    found = torch.autograd.grad(loss, [*streams, *(p for _, p in wanted)])
    norms: dict[str, list[float]] = {kind: [] for kind in classes}
    squares: dict[str, float] = {}
    per_block = len(wanted) // len(hooked.blocks)
    for i, ((kind, _), g) in enumerate(zip(wanted, found[len(streams) :], strict=True)):
        squares[kind] = squares.get(kind, 0.0) + float(g.double().square().sum())
        if (i + 1) % per_block == 0:
            for name in classes:
                norms[name].append(math.sqrt(squares.pop(name)))
    return [_rms(g) for g in found[: len(streams)]], norms
