"""What a run reports of its activations: tensors of a forward pass, reduced on their device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogpt_cli.init.expected import QUERIES
from nanogpt_cli.machine.device import Device
from nanogpt_cli.model.gpt import GPT

_NAMES = (
    *("resid_rms", "resid_kurtosis", "attn_rms", "mlp_rms", "preact_std", "dead"),
    *("attn_entropy", "attn_entropy_min", "attn_first", "attn_logit_max", "attn_score_std"),
)
# A unit counts as silent when its output stays below this share of the layer's RMS, or below this
# share of what goes into the activation function: in a layer that is dead as a whole nothing is
# small beside the others.
_SILENT, _SILENT_LAYER = 1e-2, 1e-6


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
        self._into = torch.zeros((), device=device.device)

    def __call__(self, what: str, layer: int, x: Tensor) -> None:
        """Take one intermediate tensor."""
        if what in ("resid", "attn", "mlp"):
            self._put(f"{what}_rms", layer, rms(x))
        if what == "resid":
            self._put("resid_kurtosis", layer, kurtosis(x))
        elif what == "preact":
            self._put("preact_std", layer, x.float().std())
            self._into = rms(x)
        elif what == "hidden":
            self._put("dead", layer, _silent_share(x, self._into))
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
        """Statistics of the last queries' attention; q, k are (B, H, T, D)."""
        T = k.shape[2]
        rows = min(QUERIES, T)
        with self.device.no_autocast():  # logits as exact as theory has them
            scores = (q[:, :, T - rows :].float() @ k.float().mT) * self.scale  # (B, H, rows, T)
        seen = torch.ones(rows, T, dtype=torch.bool, device=q.device).tril(T - rows)
        for name, value in attention_statistics(scores, seen).items():
            self._put(name, layer, value)


def attention_statistics(scores: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """Statistics of attention logits, each a scalar on the device, without waiting for it.

    ``attn_first`` shows attention sinks (Xiao et al. 2023, 2309.17453). Queries that see one
    position have no choice and are left out of the entropies and of ``attn_first``.

    Args:
        scores: (B, H, R, T) in float32; masked entries may hold anything but NaN.
        seen: what each query sees, of a shape that broadcasts to that of ``scores``.
    """
    count = seen.sum(-1)  # (..., R) positions that each query sees
    choice = count > 1
    visible = scores.masked_fill(~seen, -math.inf)
    p = visible.masked_fill(count[..., None] == 0, 0).softmax(-1)
    entropy = -torch.special.xlogy(p, p).sum(-1)  # (B, H, R)
    share = entropy / count.clamp(min=2).log()
    heads = _mean_where(share, choice, (0, 2))  # (H,)
    # Selecting what is seen would wait for the device to say how much that is.
    n_seen = seen.expand(scores.shape).sum()
    mean = scores.masked_fill(~seen, 0).sum() / n_seen
    off = (scores - mean).masked_fill(~seen, 0)
    return {
        "attn_entropy": heads.mean(),
        "attn_entropy_min": heads.amin(),
        "attn_first": _mean_where(p[..., 0], choice, (0, 1, 2)),
        "attn_logit_max": visible.amax(),
        "attn_score_std": (off.square().sum() / (n_seen - 1)).sqrt(),
    }


def _mean_where(x: Tensor, wanted: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean over ``dims`` of the entries that are wanted; NaN where there is none."""
    wanted = wanted.expand(x.shape)
    return x.masked_fill(~wanted, 0).sum(dims) / wanted.sum(dims)


def rms(x: Tensor) -> Tensor:
    """Root mean square over all entries, a scalar on the device."""
    return x.float().square().mean().sqrt()


def kurtosis(x: Tensor) -> Tensor:
    """Kurtosis over the channels of (..., C), averaged over positions; a scalar on the device.

    Independent normal channels have 3 (C - 1) / (C + 1), and one channel alone would have about C.
    Trained transformers move away from 3 along their axes (Elhage et al. 2023, "Privileged Bases in
    the Transformer Residual Stream").
    """
    x = x.float()
    square = (x - x.mean(-1, keepdim=True)).square()
    return (square.square().mean(-1) / square.mean(-1).square().clamp(min=1e-30)).mean()


def _silent_share(hidden: Tensor, into: Tensor) -> Tensor:
    """Share of the units of (B, T, 4C) that are (nearly) zero on every token.

    Args:
        hidden: outputs of the activation function.
        into: RMS of its inputs.
    """
    largest = hidden.float().abs().amax(dim=(0, 1))
    least = torch.maximum(_SILENT * rms(hidden), _SILENT_LAYER * into)
    return (largest <= least).float().mean()
