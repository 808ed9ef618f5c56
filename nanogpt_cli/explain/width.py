"""``nanogpt explain mup``: what keeps its size when a model becomes wider."""

from __future__ import annotations

from typing import Final

from nanogpt_cli.explain.concept import Concept, Found, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

WIDTHS: Final = (256, 1024, 4096)
_HEAD: Final = 64


def _compute(model: Model) -> Found:
    from nanogpt_cli import schemes
    from nanogpt_cli.recipe.sections import Optim

    mup, lr = schemes.get("mup"), (model.optim or Optim()).lr
    values: dict[str, Value] = {"base": mup.base_width, "lr": lr}
    for n, width in enumerate(WIDTHS):
        wide = model.config.widened(width, 0 if model.config.head_dim else _HEAD)
        values[f"width{n}"] = width
        for name, one in (("", Model(wide, schemes.get("gpt2"))), ("mup_", Model(wide, mup))):
            found = one.start()
            depth = {"n_embd": width, "n_layer": wide.n_layer}
            factor = one.scheme.lr_multiplier("fc", **depth)
            values |= {
                f"{name}std{n}": one.std("fc"), f"{name}logits{n}": found.logit_std,
                f"{name}scores{n}": max(found.score_std), f"{name}stream{n}": found.stream_rms[-1],
                f"{name}lr{n}": lr * factor, f"{name}step{n}": lr * factor * width,
            }  # fmt: skip
    return Found(values)


def _rows(prefix: str, label: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (label, f"{{width{n}}}", f"{{{prefix}std{n}:.4f}}", f"{{{prefix}lr{n}:.2g}}",
         f"{{{prefix}step{n}:.3f}}", f"{{{prefix}scores{n}:.3f}}", f"{{{prefix}stream{n}:.3f}}",
         f"{{{prefix}logits{n}:.3f}}")
        for n in range(len(WIDTHS))
    )  # fmt: skip


_WORDS: Final = Words(
    "Why can µP carry a learning rate from a narrow model to a wide one?",
    (
        "With GPT-2's fixed std and one learning rate, everything grows with the width: a sum over "
        "more channels is larger, and Adam moves each of its terms by the learning rate. So a wide "
        "model needs a smaller rate, and a new search. µP (Yang et al. 2022) divides the variance "
        "of the blocks' matrices and their learning rate by m = width/{base:.0f}, attention scores "
        "by the channels of a head instead of their root, and logits by m. By theory, before the "
        "first step, for {L} layers and a rate of {lr:g}:",
    ),
    (Action("Check it over widths:", "nanogpt init-inspect mup-sweep --coord-check"),
     Action("Search narrow, train wide:", "nanogpt train mup-sweep --lr-find")),
    table=(
        ("scheme", "width", "std", "rate", "rate × width", "score std", "stream RMS", "logit std"),
        *_rows("", "gpt2"), *_rows("mup_", "mup"),
    ),
    after=(
        "“Rate × width” bounds how far the first step can change an output of a matrix: "
        "{step0:.2f} to {step2:.2f} with gpt2, {mup_step0:.2f} at every width with mup. Scores "
        "and stream keep their size too. Logits shrink at the start as 1/√m, by design: what "
        "the head learns adds up over the width, and stays of one size.",
    ),
)  # fmt: skip

CONCEPTS: Final = {"mup": Concept({"en": _WORDS}, _compute)}
