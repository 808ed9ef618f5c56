"""Expectations that need no drawn weights: each matrix's law, and a run's first statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanogpt_cli.init.attention_theory import group_sizes
from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.init.drawing import MatrixSpec, matrices_of
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.tensor_stats import TensorStats
from nanogpt_cli.init.theory import expect, random_tokens
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.parameters import is_block_matrix, layer_of, shapes, tensor_class
from nanogpt_cli.schemes import Scheme

# Training measures the attention of this many final positions, which see the most.
QUERIES = 16
# Up to this standard deviation of its logits, attention gives the first token the uniform share
# within a few percent; with hotter attention the share differs from draw to draw.
_NEARLY_UNIFORM = 0.15
# Tokens that theory takes one by one, where it must; the cost grows with their square.
_ONE_BY_ONE = 1024


def expected_stats(
    config: GPTConfig, scheme: Scheme, idx: Tensor | None = None
) -> dict[str, list[float]]:
    """The per-layer statistics that theory expects a run to measure before its first step.

    It is the expectation for what ``training.stats`` measures: all positions of the same tokens,
    and the attention of the last ``QUERIES`` of them.

    Args:
        config: with the scheme's multipliers (``init.drawing.configure``).
        scheme: the scheme of the initial values.
        idx: (B, T) token ids that are measured; two random sequences if ``None``. Repeated tokens
            change the attention branch slightly.

    Returns:
        Lists over layers under the field names of ``layers`` events: resid_rms, attn_rms, mlp_rms,
        resid_kurtosis, preact_std, dead, attn_entropy, attn_score_std, weight_rms, and attn_first
        where attention is nearly uniform.
    """
    if idx is None:
        idx, _ = random_tokens(config, 2, config.block_size, seed=0)
    idx = idx.cpu()
    sizes = group_sizes(idx.shape[1])
    if Blueprint.of(config, scheme).by_position:  # near positions are not alike
        if idx.numel() > _ONE_BY_ONE:
            return {}
        sizes = torch.ones_like(sizes[:1]).repeat(idx.shape[1])
    targets = torch.roll(idx, -1, 1)
    found = expect(config, scheme, idx, targets, backward=False, sizes=sizes, last=QUERIES)
    weights = [weight_rms(config, scheme, layer) for layer in range(config.n_layer)]
    kurtosis = _kurtosis(config, scheme, found.stream_rms[1:])
    rows = {**statistics(found), "weight_rms": weights, "resid_kurtosis": kurtosis}
    if max(found.score_std) <= _NEARLY_UNIFORM and idx.shape[1] > 1:
        rows["attn_first"] = [_uniform_share(idx.shape[1])] * config.n_layer
    return rows


def _kurtosis(config: GPTConfig, scheme: Scheme, stream_rms: list[float]) -> list[float]:
    """Expected kurtosis over C channels of the stream after each block.

    Branches write sums over many independent weights, which are normal; the embeddings keep the
    kurtosis of their laws. The excess of a sum of independent parts is Σ excess·variance² over
    (Σ variance)², and C normal values have 3 (C - 1) / (C + 1) instead of 3.
    """
    tables = [
        spec
        for name in shapes(config)
        if tensor_class(name) in ("wte", "wpe")
        for spec in matrices_of(name, config, scheme)
    ]
    variances = [(config.multipliers.embedding * spec.std) ** 2 for spec in tables]
    excess = sum(
        (_kurtosis_of(spec) - 3) * variance**2
        for spec, variance in zip(tables, variances, strict=True)
    )
    C = config.n_embd
    return [(3 + excess / max(rms, 1e-30) ** 4) * (C - 1) / (C + 1) for rms in stream_rms]


def _uniform_share(T: int) -> float:
    """What the last queries of T positions give to the first one if each attends uniformly."""
    seen = range(max(2, T - min(QUERIES, T) + 1), T + 1)
    return sum(1 / t for t in seen) / len(seen)


def _kurtosis_of(spec: MatrixSpec) -> float:
    return spec.law.moments(*spec.shape).kurtosis if spec.law.placed else spec.law.kurtosis


def statistics(signals: Signals) -> dict[str, list[float]]:
    """Signals under the names of ``layers`` events, with one value per block."""
    return {
        "resid_rms": signals.stream_rms[1:],
        "attn_rms": signals.attn_rms,
        "mlp_rms": signals.mlp_rms,
        "preact_std": signals.preact_std,
        "dead": signals.near_zero,
        "attn_entropy": signals.attn_entropy,
        "attn_score_std": signals.score_std,
    }


def weight_rms(config: GPTConfig, scheme: Scheme, layer: int) -> float:
    """Expected root mean square over all matrices of one block."""
    names = [
        name
        for name, shape in shapes(config).items()
        if layer_of(name) == layer and is_block_matrix(name, shape)
    ]
    found = [spec for name in names for spec in matrices_of(name, config, scheme)]
    total = sum(spec.size * spec.mean_square for spec in found)
    return math.sqrt(total / sum(spec.size for spec in found))


def expected_tensors(config: GPTConfig, scheme: Scheme) -> list[TensorStats]:
    """Every matrix with its law and expected std; fields that need a measurement are NaN."""
    unknown = (math.nan,) * 5
    return [
        TensorStats(
            *(spec.key, spec.tensor_class, layer_of(name), spec.shape, *unknown),
            finite=True,
            law=spec.law,
            expected_std=spec.std,
        )
        for name in shapes(config)
        for spec in matrices_of(name, config, scheme)
    ]
