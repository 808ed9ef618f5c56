"""Small modules of unusual shapes, each with something that a search by names would miss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

V, C, T = 31, 16, 8


def norm(x: Tensor) -> Tensor:
    """RMS norm without a gain."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Mixer(nn.Module):
    """Attention whose matrices are called by letters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(C, 3 * C, bias=False)
        self.b = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v, q, k = self.a(x).unflatten(-1, (3, 2, C // 2)).unbind(-3)  # value first
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.b(y.transpose(1, 2).flatten(-2))
        return out


class Expand(nn.Module):
    """A gated MLP whose fused matrix holds the value first."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(C, 4 * C)
        self.b = nn.Linear(2 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, -1)
        out: Tensor = self.b(F.silu(gate) * value)
        return out


class Layer(nn.Module):
    """A pre-norm block with LayerScale on both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.e = Mixer(), Expand()
        self.s = nn.Parameter(torch.full((C,), 0.5))
        self.t = nn.Parameter(torch.full((C,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.s * self.m(norm(x))
        out: Tensor = x + self.t * self.e(norm(x))
        return out


class Base(nn.Module):
    """Embedding and head around what ``body`` does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Embedding(V, C)
        self.h = nn.Linear(C, V, bias=False)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.h(norm(self.body(self.w(ids))))
        return logits


class Looped(Base):
    """One block that runs three times, as in a universal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def body(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return x


class Named(Base):
    """Blocks that are attributes and not members of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.top = Layer(), Layer()

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(self.bottom(x))
        return out


class Carried(Base):
    """Every block begins with a mixture of the stream and the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.keep = nn.Parameter(torch.tensor([1.1, 1.0, 0.9]))
        self.mix = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def body(self, x: Tensor) -> Tensor:
        first = x
        for i, layer in enumerate(self.layers):
            x = layer(self.keep[i] * x + self.mix[i] * first)
        return x


class Banks(Base):
    """All matrices of all blocks in three stacks; blocks are iterations of a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.qkvo = nn.Parameter(torch.randn(3, 4 * C, C) / 4)
        self.up = nn.Parameter(torch.randn(3, 4 * C, C) / 4)
        self.down = nn.Parameter(torch.randn(3, 4 * C, C) / 8)

    def body(self, x: Tensor) -> Tensor:
        for i in range(3):
            y = norm(x)
            q, k, v = (F.linear(y, self.qkvo[i, n * C : (n + 1) * C]) for n in range(3))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(attended, self.qkvo[i, 3 * C :])
            x = x + F.relu(F.linear(norm(x), self.up[i])).square() @ self.down[i]
        return x


class Flat(Base):
    """Works on (B·T, C), adds in place and keeps its stream in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(Mixer() for _ in range(2))
        self.layers = nn.ModuleList(Expand() for _ in range(2))

    def body(self, x: Tensor) -> Tensor:
        B, length, _ = x.shape
        x = x.flatten(0, 1).double()
        for mixer, layer in zip(self.mixers, self.layers, strict=True):
            x += mixer(norm(x).float().view(B, length, C)).flatten(0, 1)
            x += layer(norm(x).float())
        return x.float().view(B, length, C)


class Factorised(Looped):
    """The embedding is narrower than the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Embedding(V, 4)
        self.widen = nn.Linear(4, C)

    def body(self, x: Tensor) -> Tensor:
        return super().body(self.widen(x))
