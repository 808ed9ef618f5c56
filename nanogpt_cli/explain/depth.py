"""Concepts of scale at the start: why 0.02, and what residual scaling does over depth."""

from __future__ import annotations

import math
from typing import Final

from nanogpt_cli.explain.concept import Concept, Found, PictureWords, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

STDS: Final = (0.002, 0.01, 0.02, 0.04, 0.1)
DEPTHS: Final = (4, 12, 48, 96)
# The width at which √(2/(5d)) of Nguyen & Salazar (2019) equals 0.02.
_SAME_WIDTH: Final = round(2 / (5 * 0.02**2))


def with_std(model: Model, std: float) -> Model:
    """The model with GPT-2's scheme for another standard deviation than 0.02."""
    from nanogpt_cli import schemes

    law = f"normal({std})"
    table = {"base": "gpt2", "embedding": law, "linear": law, "lm_head": law,
             "proj": f"normal({std} / sqrt(2*L))"}  # fmt: skip
    return model.with_scheme(schemes.parse_custom(table))


def _std(model: Model) -> Found:
    d = model.config.n_embd
    values: dict[str, Value] = {
        "keeps": 1 / math.sqrt(d), "gain": 0.02 * math.sqrt(d), "same_width": _SAME_WIDTH,
        "by_width": math.sqrt(2 / (5 * d)), "log_v": math.log(model.config.vocab_size),
    }  # fmt: skip
    for n, std in enumerate(STDS):
        found = with_std(model, std).start(backward=True)
        values |= {
            f"std{n}": std, f"logits{n}": found.logit_std, f"loss{n}": found.loss_any,
            f"growth{n}": found.growth, f"scores{n}": max(found.score_std),
            f"entropy{n}": min(found.attn_entropy), f"gradient{n}": found.gradient_ratio,
        }  # fmt: skip
    return Found(values, units={"log_v": "nats", **{f"loss{n}": "nats" for n in range(len(STDS))}})


_WHY_002: Final = Words(
    "Why 0.02?",
    (
        "A matrix of independent weights with standard deviation σ makes an input of d channels "
        "σ√d times as large. 1/√d would keep its size: {keeps:.3f} at {d} channels. 0.02 is the "
        "round number below it that GPT-2 chose, and makes it {gain:.2f} times as large. Norms "
        "before each branch make up for the rest, so that the exact value matters little:",
    ),
    (
        Action("Measure the scheme that follows the width:", "nanogpt init-inspect --init gpt2-w"),
        Action("Compare schemes side by side:",
               "nanogpt init-inspect --compare normal,gpt2-w,pytorch"),
    ),
    table=(
        ("std", "logit std", "loss", "score std", "attention entropy", "stream grows", "gradient"),
        *(
            (f"{{std{n}:g}}", f"{{logits{n}:.2f}}", f"{{loss{n}:.2f}}", f"{{scores{n}:.3f}}",
             f"{{entropy{n}:.3f}}", f"×{{growth{n}:.2f}}", f"×{{gradient{n}:.2f}}")
            for n in range(len(STDS))
        ),
    ),
    after=(
        "Too large, and the first loss is far above ln V = {log_v:.2f}: the model begins with "
        "confident errors, and attention with a preference it has not learned (entropy below 1). "
        "Too small, and branches add nothing, so that only the embeddings learn at first. "
        "“Gradient” is that at the embedding over that after the last block.",
        "With a fixed 0.02 a wider model starts larger. √(2/(5d)) follows the width: "
        "{by_width:.3f} here, and 0.02 at d = {same_width} (scheme gpt2-w).",
    ),
)  # fmt: skip


def _last_share(model: Model) -> float:
    """Share of the stream's variance behind the last block that this block has written."""
    found = model.start()
    return (found.attn_rms[-1] ** 2 + found.mlp_rms[-1] ** 2) / found.stream_rms[-1] ** 2


def _residual(model: Model) -> Found:
    plain = model.changed("normal")
    values: dict[str, Value] = {
        "proj": model.std("mlp_proj"), "plain": plain.std("mlp_proj"),
        "factor": 1 / math.sqrt(2 * model.config.n_layer),
        "growth": model.start().growth, "growth_plain": plain.start().growth,
        "gradient": model.start(backward=True).gradient_ratio,
        "gradient_plain": plain.start(backward=True).gradient_ratio,
    }  # fmt: skip
    for n, depth in enumerate(DEPTHS):
        for name, one in (("", model), ("plain_", plain)):
            at = one.changed(n_layer=depth)
            values |= {f"depth{n}": depth, f"{name}growth{n}": at.start().growth,
                       f"{name}share{n}": _last_share(at)}  # fmt: skip
    curves = (tuple(model.start().stream_rms), tuple(plain.start().stream_rms))
    return Found(values, curves=curves)


_RESIDUAL: Final = Words(
    "Why are residual projections drawn smaller?",
    (
        "Each of {L} blocks adds two branches to the residual stream, {branches} in all. "
        "Independent branches add their variances, so {branches} equal ones would grow with depth. "
        "GPT-2 draws their last matrices with 0.02/√(2L): each variance is divided by the number "
        "of branches, and the sum does not depend on L. Here their std is {proj:.2g}, unscaled "
        "{plain:.2g}.",
    ),
    (Action("One ingredient at a time:", "nanogpt init-inspect --ablate residual-scale"),
     Action("Over depth:", "nanogpt init-inspect --scan depth")),
    table=(
        ("blocks", "{scheme}: growth", "last block writes", "normal: growth", "last block writes"),
        *(
            (f"{{depth{n}}}", f"×{{growth{n}:.1f}}", f"{{share{n}:.1%}}",
             f"×{{plain_growth{n}:.1f}}", f"{{plain_share{n}:.1%}}")
            for n in range(len(DEPTHS))
        ),
    ),
    picture=PictureWords("RMS of the residual stream over depth",
                         ("{scheme} ×{growth:.1f}", "normal ×{growth_plain:.0f}"), True),
    after=(
        "“Last block writes”: its share of the stream's variance. The gradient at the embedding is "
        "{gradient:.1f} times that after the last block, and {gradient_plain:.0f} times without "
        "scaling. A norm before the head hides the size of the stream from the loss, so a small "
        "model trains either way.",
    ),
)  # fmt: skip

CONCEPTS: Final = {
    "std": Concept({"en": _WHY_002}, _std),
    "residual-scaling": Concept({"en": _RESIDUAL}, _residual),
}
