"""What a run reports of its activations: tensors of a forward pass, reduced on their device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogpt_cli.init.expected import QUERIES
from nanogpt_cli.machine.device import Device
from nanogpt_cli.model.gpt import GPT

_NAMES = (
    *("resid_rms", "attn_rms", "mlp_rms", "preact_std", "dead"),
    *("attn_entropy", "attn_logit_max", "attn_score_std"),
)
# A unit counts as silent when its output stays below this share of the layer's RMS.
_SILENT = 1e-2


class Activations:
    """A ``Probe`` that reduces what it is shown to one number per layer, without waiting for it.

    Args:
        model: that will show its tensors.
        device: where and how it computes.
        histograms: whether to keep what histograms are made of.
    """

    def __init__(self, model: GPT, device: Device, *, histograms: bool = False) -> None:
        n_layer = model.config.n_layer
        self.device = device
        self.scale = model.config.attention_scale
        self.values: dict[str, list[Tensor | None]] = {name: [None] * n_layer for name in _NAMES}
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
            self.samples[what][layer] = x.detach()

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
        B, H, T, _ = k.shape
        rows = min(QUERIES, T)
        with self.device.no_autocast():  # logits as exact as theory has them
            scores = (q[:, :, T - rows :].float() @ k.float().mT) * self.scale  # (B, H, rows, T)
        seen = torch.ones(rows, T, dtype=torch.bool, device=q.device).tril(T - rows)
        visible = scores.masked_fill(~seen, -math.inf)
        p = visible.softmax(-1)
        entropy = -torch.special.xlogy(p, p).sum(-1)  # (B, H, rows)
        limit = torch.arange(T - rows + 1, T + 1, device=q.device).float().log().clamp(min=1e-9)
        many = slice(1, None) if rows == T else slice(None)  # position 0 has nothing to choose
        self._put("attn_entropy", layer, (entropy / limit)[..., many].mean())
        self._put("attn_logit_max", layer, visible.amax())
        # Selecting what is seen would wait for the device to say how much that is.
        n_seen = B * H * sum(range(T - rows + 1, T + 1))
        mean = scores.masked_fill(~seen, 0).sum() / n_seen
        off = (scores - mean).masked_fill(~seen, 0)
        self._put("attn_score_std", layer, (off.square().sum() / (n_seen - 1)).sqrt())


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


def _silent_share(hidden: Tensor) -> Tensor:
    """Share of the units of (B, T, 4C) that are (nearly) zero on every token."""
    largest = hidden.float().abs().amax(dim=(0, 1))
    return (largest < _SILENT * _rms(hidden)).float().mean()
