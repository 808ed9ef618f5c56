"""Mean-field theory of a GPT before its first step, computed without weights.

At infinite width the residual stream's vectors are jointly Gaussian, so the matrix
C_ij = E[x_i·x_j]/d over the N = B·T tokens describes them completely. It starts from which token
ids and positions are equal and follows a recursion through LayerNorm, attention and MLP; a second
matrix Γ_ij = E[g_i·g_j]/d propagates gradients. Sources: Neal 1996, Schoenholz et al. 1611.01232
(signal propagation), Tsuchida et al. 2002.08517 (GELU kernel), Kedia et al. 2403.09635 (transformer
moments). Attention over correlated tokens is expanded to first order in the score variance, or
sampled where that is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt_cli.init import attention_theory as attention
from nanogpt_cli.init import scope
from nanogpt_cli.init.drawing import matrices_of
from nanogpt_cli.init.kernels import KERNELS, Kernel, dead_share
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.model.gpt import LAYER_NORM_EPS, GPTConfig
from nanogpt_cli.schemes import Scheme

# Above this logit variance, the loss is computed from sampled logits instead of in closed form.
MAX_CLOSED_FORM_VARIANCE = 2.0
_SAMPLES = 24


@dataclass(frozen=True)
class Variances:
    """Second moments of one block's weights: E[w²] of each matrix, bias and LayerNorm gain."""

    q: float
    k: float
    v: float
    attn_proj: float
    fc: float
    mlp_proj: float
    gain_1: float
    gain_2: float
    bias_qkv: float
    bias_attn: float
    bias_fc: float
    bias_mlp: float

    @classmethod
    def of(cls, config: GPTConfig, scheme: Scheme, layer: int) -> Variances:
        """Compute them from the laws of block ``layer``."""

        def second(name: str) -> list[float]:
            full = f"transformer.h.{layer}.{name}"
            return [p.std**2 + p.law.mean**2 for p in matrices_of(full, config, scheme)]

        names = ("attn.c_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias")
        return cls(
            *second("attn.c_attn.weight"),
            *second("attn.c_proj.weight"),
            *second("mlp.c_fc.weight"),
            *second("mlp.c_proj.weight"),
            *second("ln_1.weight"),
            *second("ln_2.weight"),
            *(second(name)[0] if config.bias else 0.0 for name in names),
        )


def moment(name: str, config: GPTConfig, scheme: Scheme) -> float:
    """E[w²] of a parameter outside the blocks."""
    (spec,) = matrices_of(name, config, scheme)
    return spec.std**2 + spec.law.mean**2


@dataclass(frozen=True)
class _Layer:
    """State of a block for the backward recursion: attention and the residual stream around it."""

    before: Tensor  # (N,) variances before attention
    middle: Tensor  # (N, N) covariance between attention and MLP
    field: attention.Field


class Recursion:
    """The forward and backward recursion of one model on given tokens.

    Args:
        config: the model, with the scheme's multipliers.
        scheme: the laws of its weights.
        idx: (B, T) int64 token ids.
        targets: (B, T) int64 next ids.
        layer_norm: False leaves every LayerNorm out (an ablation).
        sizes: positions per group (``attention_theory.group_sizes``), for a forward pass alone;
            each by itself if ``None``. The cost grows with the square of B times their number.
        last: number of final positions whose attention is described; 0 for all.
    """

    def __init__(
        self,
        config: GPTConfig,
        scheme: Scheme,
        idx: Tensor,
        targets: Tensor,
        *,
        layer_norm: bool = True,
        sizes: Tensor | None = None,
        last: int = 0,
    ) -> None:
        self.config = config
        self.layer_norm = layer_norm
        self.scheme = scheme
        sizes = torch.ones(idx.shape[1], dtype=torch.int64) if sizes is None else sizes
        self.places = sizes.cumsum(0) - (sizes + 1) // 2  # the position that stands for a group
        self.idx = idx[:, self.places].reshape(-1)
        self.targets = targets[:, self.places].reshape(-1)
        self.causal = attention.Causal(len(idx), sizes, last)
        self.kernel: Kernel = KERNELS[config.activation]
        self.out = Signals()
        self.layers: list[_Layer] = []
        self.wte = moment("transformer.wte.weight", config, scheme)
        self.head = (
            self.wte if config.tied else moment("lm_head.weight", config, scheme)
        ) * moment("transformer.ln_f.weight", config, scheme)
        self.blocks = [Variances.of(config, scheme, layer) for layer in range(config.n_layer)]

    def run(self, *, backward: bool) -> Signals:
        """Run the recursion; ``backward`` adds the gradients and stores two matrices per block."""
        C = self._embed()
        for layer in range(self.config.n_layer):
            self._watch(C)
            middle, field = self._attend(C, layer)
            if backward:
                self.layers.append(_Layer(C.diagonal().clone(), middle.float(), field))
            C = self._transform(middle, layer)
        self._watch(C)
        self._finish(C)
        if backward:
            self._backward(C)
        return self.out

    def _embed(self) -> Tensor:
        config = self.config
        wpe = moment("transformer.wpe.weight", config, self.scheme)
        positions = self.places.repeat(self.causal.B)
        C = self.wte * _equal(self.idx) + wpe * _equal(positions)
        total = self.wte + wpe
        self.out.token_share = self.wte / total if total else math.nan
        return C * config.multipliers.embedding**2

    def _rms(self, C: Tensor) -> float:
        """RMS over channels and positions of vectors with covariance C."""
        return math.sqrt(max(0.0, self.causal.average(C.diagonal())))

    def _watch(self, C: Tensor) -> None:
        self.out.stream_rms.append(self._rms(C))
        self.out.cosine.append(self.causal.mean_cosine(C))

    def _attend(self, C: Tensor, layer: int) -> tuple[Tensor, attention.Field]:
        """The residual stream after the attention branch was added, and the attention itself."""
        w, d = self.blocks[layer], self.config.n_embd
        field = self._field(C, layer)
        Y = field.mix(d * w.v, w.bias_qkv)
        A = (d * w.attn_proj * Y + w.bias_attn) * self.config.multipliers.residual**2
        self.out.attn_rms.append(self._rms(A))
        self.out.score_std.append(field.score_std)
        self.out.attn_entropy.append(field.entropy)
        return C + A, field

    def _field(self, C: Tensor, layer: int) -> attention.Field:
        w, d = self.blocks[layer], self.config.n_embd
        return self.causal.field(
            self._normalise(C, w.gain_1),
            q=(d * w.q, w.bias_qkv),
            k=(d * w.k, w.bias_qkv),
            head_size=self.config.head_size,
            scale=self.config.attention_scale,
            seed=layer,
        )

    def _transform(self, middle: Tensor, layer: int) -> Tensor:
        """The residual stream after the MLP branch was added."""
        w, config = self.blocks[layer], self.config
        R = config.n_embd * w.fc * self._normalise(middle, w.gain_2) + w.bias_fc
        value, _ = self.kernel(R)
        M = (config.hidden_size * w.mlp_proj * value + w.bias_mlp) * config.multipliers.residual**2
        self.out.mlp_rms.append(self._rms(M))
        self.out.preact_std.append(self._rms(R))
        self.out.near_zero.append(self._dead_units(R))
        return middle + M

    def _dead_units(self, R: Tensor) -> float:
        if self.config.activation not in ("relu", "relu2"):
            return 0.0
        own, other, N = self.causal.pairs(R)
        return dead_share(own, other, N)

    def _scale(self, variance: Tensor) -> Tensor:
        """s_i·s_j, by which LayerNorm divides, for (N,) variances of the residual stream."""
        s = self._size(variance)
        return s[:, None] * s

    def _size(self, variance: Tensor) -> Tensor:
        if not self.layer_norm:
            return torch.ones_like(variance)
        return (variance + LAYER_NORM_EPS).sqrt()

    def _normalise(self, C: Tensor, gain: float) -> Tensor:
        """Covariance after LayerNorm; ε matters at the embedding, where C_ii is 8e-4."""
        return gain * C / self._scale(C.diagonal()) if self.layer_norm else C

    def _finish(self, C: Tensor) -> None:
        config, out = self.config, self.out
        power = C.diagonal()
        s = self._size(power)
        # ε keeps the RMS of LayerNorm's output below 1, by 1 % where that of its input is 0.03.
        variance = config.n_embd * self.head * config.multipliers.output**2
        variance *= self.causal.average(power / s.square())
        own, share = torch.zeros_like(s), torch.zeros_like(s)
        if config.tied:
            factor = config.multipliers.output * config.multipliers.embedding
            own = factor * config.n_embd * self.head / s
            share = config.multipliers.embedding**2 * self.wte / power.clamp_min(1e-300)
        repeats = (self.idx == self.targets).double()
        # The part of the token's vector orthogonal to the residual stream, and the latter's length.
        noise = variance * (1 - share.clamp(0, 1)) + own.square() / (2 * config.n_embd)
        out.own_logit = float(own.mean())
        out.logit_std = math.sqrt(variance + float(own.square().mean()) / config.vocab_size)
        out.loss = initial_loss(config.vocab_size, variance, own, noise, repeats)
        # One of all V targets is the token just read.
        out.loss_any = out.loss + float(((repeats - 1 / config.vocab_size) * own).mean())

    def _backward(self, C: Tensor) -> None:
        """Propagate Γ from the loss to the embedding, recording RMS and weight gradients."""
        config, out = self.config, self.out
        out.weight_grad = {name: [] for name in ("c_attn", "attn_proj", "fc", "mlp_proj")}
        G = self._loss_gradient(C) * (self.head * config.multipliers.output**2)
        G = G / self._scale(C.diagonal())
        out.grad_rms.append(self._rms(G))
        for layer in reversed(range(config.n_layer)):
            G = self._back_mlp(G, layer)
            G = self._back_attention(G, layer)
            out.grad_rms.append(self._rms(G))
        for values in (out.grad_rms, *out.weight_grad.values()):
            values.reverse()

    def _loss_gradient(self, C: Tensor) -> Tensor:
        """Inner products of p - onehot(target) between tokens, over N².

        All p but that of the token just read are those of Gaussian logits, as correlated between
        two positions as their streams, so that Σ p_v p'_v is exp(σ²ρ)/V. That p also prefers the
        rows of the head that point along its stream has no effect: the last LayerNorm passes no
        gradient in that direction. Against measurements at a vocabulary of 65, weight gradients are
        within 5 %; of 10, within 15 %; of 2 and 1 they are wrong.

        Args:
            C: (N, N) covariance of the last residual stream.
        """
        V, N = self.config.vocab_size, len(self.idx)
        own = self.out.own_logit
        share = 1 / (1 + (V - 1) * math.exp(-own))  # p of the token just read
        cross = (self.idx[:, None] == self.targets).double()
        scale = self.config.n_embd * self.head * self.config.multipliers.output**2
        together = (scale * self._normalise(C, 1.0)).clamp(max=math.log(V)).exp()  # V: one word
        others = (together - 2) / V
        G = _equal(self.targets) + share**2 * _equal(self.idx)
        return (G - share * (cross + cross.T) + (1 - share) ** 2 * others) / N**2

    def _back_mlp(self, G: Tensor, layer: int) -> Tensor:
        w, config = self.blocks[layer], self.config
        middle = self.layers[layer].middle.double()
        X = self._normalise(middle, w.gain_2)
        value, slope = self.kernel(config.n_embd * w.fc * X + w.bias_fc)
        branch = G * config.multipliers.residual**2
        inner = config.n_embd * w.mlp_proj * branch * slope
        rows = config.hidden_size
        self._weight("mlp_proj", config.n_embd * rows * (branch * value).sum())
        self._weight("fc", config.n_embd * rows * (inner * X).sum())
        return G + rows * w.fc * w.gain_2 * inner / self._scale(middle.diagonal())

    def _back_attention(self, G: Tensor, layer: int) -> Tensor:
        w, config = self.blocks[layer], self.config
        d = config.n_embd
        before, field = self.layers[layer].before, self.layers[layer].field
        branch = G * config.multipliers.residual**2
        grad_q, grad_k, grad_v = field.back(d * w.attn_proj * branch, d * w.v, w.bias_qkv)
        self._weight("attn_proj", d * d * (branch * field.mix(d * w.v, w.bias_qkv)).sum())
        self._weight("c_attn", d * d * ((grad_q + grad_k + grad_v) * field.X).sum())
        inner = d * (w.q * grad_q + w.k * grad_k + w.v * grad_v)
        return G + w.gain_1 * inner / self._scale(before)

    def _weight(self, name: str, square: Tensor) -> None:
        self.out.weight_grad[name].append(math.sqrt(max(0.0, float(square))))


def _equal(values: Tensor) -> Tensor:
    return (values[:, None] == values).double()


def initial_loss(
    vocab_size: int, variance: float, own: Tensor, noise: Tensor, repeats: Tensor
) -> float:
    """Mean cross-entropy if all logits but that of the token just read are N(0, variance).

    Args:
        vocab_size: V.
        variance: variance of a logit over the vocabulary.
        own, noise: (N,) mean and variance of the logit of the token just read.
        repeats: (N,) 1 where the target is the token just read, else 0.
    """
    if variance <= MAX_CLOSED_FORM_VARIANCE:
        quenched = math.expm1(variance) / (2 * vocab_size)
        others = torch.tensor([math.log(max(vocab_size - 1, 1)) + variance / 2 - quenched])
    else:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(_SAMPLES, max(vocab_size - 1, 1), generator=generator)
        others = (z * math.sqrt(variance)).logsumexp(1)
    g = torch.linspace(-6, 6, 121, dtype=torch.float64)
    logit = own[:, None] + noise.sqrt()[:, None] * g
    total = torch.logaddexp(logit, others.double()[:, None, None]).mean(0)
    return float((total @ (-g.square() / 2).softmax(0) - repeats * own).mean())


def expect(
    config: GPTConfig,
    scheme: Scheme,
    idx: Tensor,
    targets: Tensor,
    *,
    backward: bool = True,
    layer_norm: bool = True,
    sizes: Tensor | None = None,
    last: int = 0,
) -> Signals:
    """Expected signals of ``scheme`` on given tokens, without drawing a weight.

    Args:
        config: with the scheme's multipliers (``init.drawing.configure``).
        scheme: from ``schemes.get``.
        idx, targets: (B, T) int64; the cost grows with (B·T)².
        backward: whether to compute gradients, which takes about twice as long.
        layer_norm: False leaves every LayerNorm out (an ablation).
        sizes, last: see ``Recursion``.
    """
    scope.check(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would cost more than they gain on such small matrices
    try:
        run = Recursion(config, scheme, idx, targets, layer_norm=layer_norm, sizes=sizes, last=last)
        return run.run(backward=backward)
    finally:
        torch.set_num_threads(threads)


def random_tokens(config: GPTConfig, batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Uniform token ids and their next ids, (batch, length) each."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (batch, length + 1), generator=rng)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
