"""Feed-forward networks of a block, and their activations.

Shapes in comments: B batch, T time, C = n_embd channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.machine.products import Linear
from nanogpt_cli.model import dropout
from nanogpt_cli.model.attention import Probe
from nanogpt_cli.model.config import GPTConfig
from nanogpt_cli.model.dropout import Noise


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, Primer)."""
    return F.relu(x).square()


# "gelu" is the exact erf form nanoGPT uses; "gelu_tanh" the approximation OpenAI's GPT-2 was
# trained with. A checkpoint must keep the one it was trained with. Of gated MLPs, that of the gate.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class MLP(nn.Module):
    """Position-wise feed-forward network: expand, activate, contract."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        rows, bias = config.hidden_size * (2 if self.gated else 1), config.bias is True
        self.c_fc = Linear(config.n_embd, rows, bias=bias)
        self.c_proj = Linear(config.hidden_size, config.n_embd, bias=bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        h = self.c_fc(x)  # (B, T, 4C); gate and value side by side if gated
        value: Tensor | None = None
        if self.gated:
            h, value = h.chunk(2, dim=-1)
        if probe is not None:
            probe("preact", self.layer, h)
        h = self.activation(h)
        if value is not None:
            h = h * value
        if probe is not None:
            probe("hidden", self.layer, h)
        return dropout.drop(self.c_proj(h), self.dropout * self.training, noise)


class GatedMLP(nn.Module):
    """Feed-forward network whose activations are multiplied with a second projection."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        hidden, bias = config.hidden_size, config.bias is True
        self.gate_proj = Linear(config.n_embd, hidden, bias=bias)
        self.up_proj = Linear(config.n_embd, hidden, bias=bias)
        self.down_proj = Linear(hidden, config.n_embd, bias=bias)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        gate = self.gate_proj(x)  # (B, T, hidden)
        h = self.activation(gate) * self.up_proj(x)
        if probe is not None:
            probe("preact", self.layer, gate)
            probe("hidden", self.layer, h)
        return dropout.drop(self.down_proj(h), self.dropout * self.training, noise)


class PlainMLP(nn.Module):
    """Feed-forward network without a gate, beside parts that GPT-2 lacks."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        bias = config.bias is True
        self.up_proj = Linear(config.n_embd, config.hidden_size, bias=bias)
        self.down_proj = Linear(config.hidden_size, config.n_embd, bias=bias)

    def forward(self, x: Tensor, probe: Probe | None = None, noise: Noise | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        preact = self.up_proj(x)  # (B, T, hidden)
        h = self.activation(preact)
        if probe is not None:
            probe("preact", self.layer, preact)
            probe("hidden", self.layer, h)
        return dropout.drop(self.down_proj(h), self.dropout * self.training, noise)
