"""The scheme whose standard deviations are nearest to those of measured weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from nanogpt_cli.init.drawing import MatrixSpec, matrices_of
from nanogpt_cli.init.tensor_stats import TensorStats
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.schemes import Scheme, catalogue

MATRICES = ("q", "k", "v", "attn_proj", "fc", "mlp_proj")
TABLES = ("wte", "wpe", "lm_head")
# Cap on a class's log-ratio of std, so that a single class cannot outweigh all others.
_CAP = 0.7
# Penalty for a matrix whose values could not be drawn from the law, whatever its std.
_SHAPE = 0.15
# Mean squared log-ratio above which no scheme is near: the weights are trained, or follow a scheme
# that is not in the catalogue. One class of eight may be entirely different.
_FAR = 0.07
# The same for a scheme times a factor, which fits more by chance: no class may be different.
_SCALED = 0.015


@dataclass(frozen=True)
class Match:
    """The scheme whose standard deviations are nearest to the measured ones.

    Attributes:
        scheme: the scheme.
        distance: mean over classes of the squared log-ratio of std, capped per class.
        factor: by which all stds of the scheme are multiplied; 1 unless none is near without.
    """

    scheme: Scheme
    distance: float
    factor: float = 1.0

    @property
    def near(self) -> bool:
        """Whether the weights follow this scheme, except perhaps for a class or two."""
        return self.distance < _FAR

    @property
    def name(self) -> str:
        """The scheme's name, with the factor: ``gpt2 × 0.5``."""
        return self.scheme.name + (f" × {self.factor:.2g}" if self.factor != 1 else "")


def nearest_scheme(tensors: list[TensorStats], config: GPTConfig) -> Match:
    """Compare the std of every class and block with that of every scheme; returns the nearest.

    If none is near, each is tried with its matrices times one factor, as a configuration's own
    ``initializer_range`` gives.
    """
    scored = [Match(s, _distance(tensors, s, config)) for s in catalogue().values()]
    plain = min(scored, key=lambda match: match.distance)
    if plain.near:
        return plain
    scaled = []
    for scheme in catalogue().values():
        factor = _factor(tensors, scheme, config)
        scaled.append(Match(scheme, _distance(tensors, scheme, config, factor), factor))
    # Some schemes are multiples of one another: the one with the factor nearest to 1 is meant.
    best = min(scaled, key=lambda match: match.distance + 1e-3 * abs(math.log(match.factor)))
    return best if best.distance < _SCALED else plain


def _factor(tensors: list[TensorStats], scheme: Scheme, config: GPTConfig) -> float:
    """The median ratio of measured std to that of the scheme."""
    found = [t for t in tensors if t.tensor_class in (*MATRICES, *TABLES) and t.std > 0]
    pairs = zip(found, declared(found, scheme, config), strict=True)
    return median([t.std / spec.std for t, spec in pairs if spec.std > 0] or [1.0])


def declared(
    tensors: list[TensorStats], scheme: Scheme, config: GPTConfig, factor: float = 1.0
) -> list[MatrixSpec]:
    """The law that ``scheme`` prescribes for each tensor, matrices times ``factor``."""
    cache: dict[str, dict[str, MatrixSpec]] = {}
    found = []
    for t in tensors:
        name = t.key.partition("/")[0]
        if name not in cache:
            cache[name] = {p.key: p for p in matrices_of(name, config, scheme)}
        spec = cache[name][t.key]
        if factor != 1 and t.tensor_class in (*MATRICES, *TABLES):
            law = replace(spec.law, scale=spec.law.scale * factor)
            spec = replace(spec, law=law, std=spec.std * factor)
        found.append(spec)
    return found


def _distance(
    tensors: list[TensorStats], scheme: Scheme, config: GPTConfig, factor: float = 1.0
) -> float:
    last = config.n_layer - 1
    kept = [
        t
        for t in tensors
        if t.tensor_class in (*MATRICES, *TABLES) and t.layer in (-1, 0, last // 2, last)
    ]
    # One zero matrix in a class of nonzero ones is a separate fault and no evidence for a scheme.
    alive = {t.tensor_class for t in tensors if t.std > 0}
    kept = [t for t in kept if t.std != 0 or t.tensor_class not in alive]
    by_kind: dict[str, list[float]] = {}
    for t, spec in zip(kept, declared(kept, scheme, config, factor), strict=True):
        by_kind.setdefault(t.tensor_class, []).append(_gap(t, spec))
    means = [sum(gaps) / len(gaps) for gaps in by_kind.values()]
    return sum(means) / max(1, len(means))


def _gap(t: TensorStats, spec: MatrixSpec) -> float:
    """Squared log-ratio of std, capped, plus a penalty if the law could not give these values."""
    if not t.finite or (t.std > 0) != (spec.std > 0):
        return _CAP**2
    if spec.std == 0:
        return 0.0
    shape = _SHAPE if t.exceeds(spec.law) or _cut_short(t, spec) else 0.0
    return min(abs(math.log(t.std / spec.std)), _CAP) ** 2 + shape


def _cut_short(t: TensorStats, spec: MatrixSpec) -> bool:
    """Whether a normal matrix of this size would have larger extremes, all but once in 10,000."""
    within = math.erf(t.reach / t.std / math.sqrt(2))
    return spec.law.kind == "normal" and t.size * math.log(max(within, 1e-300)) < math.log(1e-4)
