"""``nanogpt explain tying``: one matrix as token table and head."""

from __future__ import annotations

import math
from typing import Final

from nanogpt_cli.explain.concept import Concept, Found, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model


def _compute(model: Model) -> Found:
    from nanogpt_cli.model.accounting import account

    V = model.config.vocab_size
    values: dict[str, Value] = {"log_v": math.log(V), "uniform": 1 / V,
                                "table": V * model.config.n_embd / 1e6}  # fmt: skip
    for name, tied in (("tied", True), ("untied", False)):
        one = model.changed(tied=tied)
        found, sizes = one.start(), account(one.config)
        values |= {
            f"{name}_size": sizes.parameters / 1e6, f"{name}_memory": 16 * sizes.parameters / 2**20,
            f"{name}_own": found.own_logit, f"{name}_loss": found.loss_any,
            f"{name}_p": 1 / (1 + (V - 1) * math.exp(-found.own_logit)),
            f"{name}_logits": found.logit_std,
        }  # fmt: skip
    tied_size, untied_size = values["tied_size"], values["untied_size"]
    assert isinstance(tied_size, float)
    assert isinstance(untied_size, float)
    values["share"] = 1 - tied_size / untied_size
    return Found(values, units={"table": "million parameters", "tied_memory": "MiB",
                                "untied_memory": "MiB", "tied_loss": "nats",
                                "untied_loss": "nats"})  # fmt: skip


_WORDS: Final = Words(
    "Why do token table and head share one matrix?",
    (
        "The token table turns an id into a vector, the head a vector into a score for every id: "
        "both have {V} rows of {d} numbers, {table:.1f} million, and similar tokens should have "
        "similar rows in both. GPT-2 uses one matrix twice (Press & Wolf 2017). That saves "
        "{share:.0%} of the parameters here:",
    ),
    (Action("Take two matrices:", "nanogpt train small --set model.tied=false"),
     Action("What tying changes at the start:", "nanogpt init-inspect --ablate tying")),
    table=(
        ("", "parameters", "training state", "own logit", "its probability", "first loss"),
        ("tied", "{tied_size:.1f} M", "{tied_memory:,.0f} MiB", "{tied_own:.2f}", "{tied_p:.2g}",
         "{tied_loss:.3f}"),
        ("untied", "{untied_size:.1f} M", "{untied_memory:,.0f} MiB", "{untied_own:.2f}",
         "{untied_p:.2g}", "{untied_loss:.3f}"),
    ),
    after=(
        "Training state: weights, gradients and AdamW's two moments in float32.",
        "Own logit: the score of the token just read, above the mean. The stream still holds that "
        "token's own row, so a tied head begins by expecting it again: with probability "
        "{tied_p:.2g} in place of 1/V = {uniform:.2g}. The more the "
        "blocks add to the stream, the less of it is left (nanogpt explain own-token).",
        "One tensor can start by one law only: with two, head and table may differ, as in schemes "
        "that start the head at zero. The gradient of a tied matrix is the sum of both uses; every "
        "row gets some at each step, even those of tokens that do not occur.",
    ),
)  # fmt: skip

CONCEPTS: Final = {"tying": Concept({"en": _WORDS}, _compute)}
