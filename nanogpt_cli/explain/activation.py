"""``nanogpt explain activation``: moments computed now beside losses from a bundled measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from nanogpt_cli.explain.activation_moments import SILENT, moments
from nanogpt_cli.explain.concept import Concept, Found, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

ACTIVATIONS: Final = ("gelu", "relu", "silu", "relu2", "swiglu")
MEASURED: Final = Path(__file__).with_name("activation_losses.json")


_LABELS: Final = {"gelu": "GELU", "relu": "ReLU", "silu": "SiLU", "relu2": "ReLU²",
                  "swiglu": "SwiGLU"}  # fmt: skip


def measured() -> dict[str, Any]:
    """The bundled measurement: its conditions, the command, and losses by activation and seed."""
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def _compute(model: Model) -> Found:
    bundled = measured()
    std = model.std("fc")
    variance = model.config.n_embd * std**2
    values: dict[str, Value] = {"variance": variance, "limit": SILENT, "fc": std,
                                "command": bundled["command"],
                                **bundled["conditions"]}  # fmt: skip
    gelu = bundled["losses"]["gelu"]
    means, apart = {}, {}
    for name in ACTIVATIONS:
        found, losses = moments(name, variance), bundled["losses"][name]
        means[name] = sum(losses) / len(losses)
        apart[name] = [loss - other for loss, other in zip(losses, gelu, strict=True)]
        values |= {
            f"{name}_silent": found.silent, f"{name}_slope": found.slope,
            f"{name}_rms": found.slope_rms, f"{name}_second": found.second,
            f"{name}_loss": means[name], f"{name}_low": min(apart[name]),
            f"{name}_high": max(apart[name]),
        }  # fmt: skip
    values |= {"seeds": len(gelu), "scatter": max(gelu) - min(gelu),
               "between": max(means.values()) - min(means.values()),
               "best": _LABELS[min(means, key=means.__getitem__)],
               "worst": _LABELS[max(means, key=means.__getitem__)]}  # fmt: skip
    units = dict.fromkeys(("scatter", "between"), "nats")
    return Found(values, units=units | {f"{name}_loss": "nats" for name in ACTIVATIONS})


_WORDS: Final = Words(
    "Does GELU matter?",
    (
        "A little. On the Gaussian pre-activations of the start, of variance {variance:.3f} here "
        "({d} channels, std {fc:.3g}), activations differ in how many outputs are near zero and in "
        "how much gradient passes:",
    ),
    (Action("See it at the start:", "nanogpt init-inspect --activation relu"),),
    table=(
        ("", "silent", "mean gradient", "gradient RMS", "2nd moment", "loss", "minus GELU's"),
        *(
            (label, f"{{{name}_silent:.1%}}", f"{{{name}_slope:.2f}}", f"{{{name}_rms:.2f}}",
             f"{{{name}_second:.4f}}", f"{{{name}_loss:.3f}}",
             "–" if name == "gelu" else f"{{{name}_low:+.3f}} to {{{name}_high:+.3f}}")
            for name, label in _LABELS.items()
        ),
    ),
    after=(
        "Silent: outputs below {limit:.0%} of their RMS. ReLU is exactly zero, and passes no "
        "gradient, for every negative input; GELU and SiLU pass some, so that a unit can come "
        "back. SwiGLU multiplies by a second projection, whose random sign makes the gate's mean "
        "gradient 0.",
        "Loss: on validation text after {steps} steps, mean of {seeds} seeds; beside it the "
        "difference from GELU at the same seed. Measured on {date} with {model}, on {data}, by "
        "{optimizer}, which was not searched for each; SwiGLU's hidden layer is 8/3 d for equal "
        "size. From best ({best}) to worst ({worst}) it is {between:.3f} nats; a seed alone "
        "changes GELU's loss by up to {scatter:.3f}.",
        "Repeat it: {command}",
    ),
)  # fmt: skip

CONCEPTS: Final = {"activation": Concept({"en": _WORDS}, _compute)}
