"""``nanogpt explain init``: which tensor starts by which law, why, and what is claimed wrongly."""

from __future__ import annotations

import math
from typing import Final

from nanogpt_cli.explain.activation_moments import moments
from nanogpt_cli.explain.concept import (
    FALSE,
    HALF,
    TRUE,
    ClaimWords,
    Concept,
    Found,
    PictureWords,
    Words,
)  # fmt: skip
from nanogpt_cli.explain.init_german import GERMAN
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

UNSCALED: Final = "normal"  # the same scheme without the scaling of residual projections
_FLAT = 2.0  # a stream that grows by less neither explodes nor vanishes
_ALIKE = 0.2  # growths at two depths that differ by less count as independent of depth


def _said(model: Model, kind: str) -> str:
    """A law as the scheme writes it, and its standard deviation where that is not the same."""
    rule, std = model.scheme.rules[kind], model.std(kind)
    law = str(rule)
    return law if rule.kind == "constant" or law == f"normal({std:g})" else f"{law} = {std:.2g}"


def growths(model: Model) -> dict[str, float]:
    """The stream's growth at the model's depth and another one, with and without scaling."""
    depth = model.config.n_layer
    other = 4 if depth > 4 else 4 * depth
    found: dict[str, float] = {"other": other}
    for name, scheme in (("", ""), ("_unscaled", UNSCALED)):
        found[f"growth{name}"] = model.changed(scheme).start().growth
        found[f"growth_other{name}"] = model.changed(scheme, n_layer=other).start().growth
    return found


def _branches_alike(model: Model, other: int) -> bool:
    """Whether all branches together have about the same size at both depths."""
    here, there = (
        math.hypot(*found.attn_rms, *found.mlp_rms)
        for found in (model.start(), model.changed(n_layer=other).start())
    )
    return math.isclose(here, there, rel_tol=_ALIKE)


def compute(model: Model) -> Found:
    """Laws and what follows from them, by theory alone."""
    from nanogpt_cli.recipe.sections import Optim

    signals, config = model.start(), model.config
    fc, proj, lr = model.std("fc"), model.std("mlp_proj"), (model.optim or Optim()).lr
    plain = model.std("fc", model.changed(UNSCALED).scheme)
    log_v = math.log(config.vocab_size)
    grown = growths(model)
    now = moments(config.activation, config.n_embd * fc**2)
    values: dict[str, float | str] = {
        **grown, "branches_alike": _branches_alike(model, int(grown["other"])),
        "neutral": (_said(model, "ln"), _said(model, "bias")) == ("1", "0"),
        "wte": _said(model, "wte"), "wpe": _said(model, "wpe"),
        "linear": _said(model, "fc"), "proj": _said(model, "mlp_proj"),
        "gain": _said(model, "ln"), "bias": _said(model, "bias"),
        "logit_std": signals.logit_std, "loss": signals.loss_any, "log_v": log_v,
        "excess": signals.loss_any - log_v, "token_share": signals.token_share,
        "proj_std": proj, "fc_std": fc, "times_002": 0.02 * plain,
        "sqrt_2L": plain * math.sqrt(2 / config.n_layer),
        "per_width": 0.02 / math.sqrt(config.n_embd),
        "silent": now.silent, "silent_relu": moments("relu", config.n_embd * fc**2).silent,
        "lr": lr, "step_fc": _share(lr, fc), "step_proj": _share(lr, proj),
        "step_plain": _share(lr, plain),
    }  # fmt: skip
    flat = 1 / _FLAT < grown["growth"] < _FLAT
    alike = abs(grown["growth"] / grown["growth_other"] - 1) < _ALIKE
    relu = config.activation in ("relu", "relu2")
    verdicts = {
        "times": _equal(proj, 0.02 * plain),
        "root": _equal(proj, plain * math.sqrt(2 / config.n_layer)),
        "width": _equal(fc, 0.02 / math.sqrt(config.n_embd)), "relu": FALSE if relu else TRUE,
        "variance": (FALSE, HALF, TRUE)[flat + alike],
        # A smaller first step would be a reason; by residual scaling it becomes larger.
        "warmup": FALSE if proj <= plain else HALF,
    }  # fmt: skip
    depth = range(config.n_layer + 1)
    curves = (signals.stream_rms, model.changed(UNSCALED).start().stream_rms)
    assert all(len(curve) == len(depth) for curve in curves)
    return Found(values, verdicts, (tuple(curves[0]), tuple(curves[1])),
                 {"loss": "nats", "log_v": "nats", "excess": "nats"})  # fmt: skip


def _share(lr: float, std: float) -> float:
    return lr / std if std else math.inf


def _equal(found: float, claimed: float) -> str:
    return TRUE if math.isclose(found, claimed, rel_tol=1e-3) else FALSE


_ENGLISH: Final = Words(
    "How does a GPT start, and why this way?",
    (),
    (Action("Is my init fine? Theory and measurement, layer by layer:", "nanogpt init-inspect"),
     Action("Why 0.02, and why 1/√(2L):", "nanogpt explain std")),
    (
        ("Tensor", "Starts as", "Why"),
        ("token table = head", "{wte}", "logit std {logit_std:.2f}; loss {loss:.2f} = ln V + "
         "{excess:.2f}"),
        ("position table", "{wpe}", "tokens are {token_share:.0%} of the variance at the start"),
        ("q, k, v, MLP input", "{linear}", "a norm sets the size of their input"),
        ("both projections", "{proj}", "the sum of {branches} branches "
         "{branches_alike:does not depend|depends} on L"),
        ("norm gain; biases", "{gain}; {bias}", "{neutral:neutral at the start: no scale, "
         "no offset|not neutral: the start scales or shifts}"),
    ),
    PictureWords("RMS of the residual stream, embedding to block {L}",
                 ("{scheme} ×{growth:.1f}", "unscaled (normal) ×{growth_unscaled:.1f}"), True),
    (
        ClaimWords("times", "projections: weight *= 0.02",
                   "drawn anew, std {proj_std:.2g}; this gives {times_002:.2g}"),
        ClaimWords("root", "… or weight *= sqrt(2/n_layers)",
                   "this gives {sqrt_2L:.2g}, twice 0.02/√(2L)"),
        ClaimWords("width", "linear layers: std 0.02/sqrt(n_embd)",
                   "std is {fc_std:.2g}; this gives {per_width:.2g}"),
        ClaimWords("relu", "there is no ReLU",
                   "{activation}: {silent:.0%} of outputs near zero; ReLU has {silent_relu:.0%}"),
        ClaimWords("variance", "variance neither explodes nor vanishes",
                   "×{growth:.1f} at L={L}, ×{growth_other:.1f} at {other:.0f}; unscaled "
                   "×{growth_unscaled:.1f}, ×{growth_other_unscaled:.1f}"),
        ClaimWords("warmup", "so it trains without warmup",
                   "step 1 at lr {lr:g}: {step_proj:.0%} of a weight, unscaled {step_plain:.0%}"),
    ),
)  # fmt: skip

CONCEPTS: Final = {"init": Concept({"en": _ENGLISH, "de": GERMAN}, compute)}
