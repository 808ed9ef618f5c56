"""Concepts of the optimizer: warmup and Muon."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from nanogpt_cli.explain.concept import Concept, Found, PictureWords, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.values import Model

if TYPE_CHECKING:
    from nanogpt_cli.model.config import GPTConfig

_COUNTS: Final = (1, 10, 100)
_STEPS_SHOWN: Final = 3  # times the warmup
# A matrix like a gradient: the sum of few outer products, as tokens of a batch give it.
_ROWS, _COLUMNS, _TOKENS = 64, 256, 48


def averaged(steps: int, beta: float) -> float:
    """Independent batches that a corrected moving average of so many steps amounts to.

    (Σw)²/Σw² of the weights (1-β)βᵏ, as Kish (1965) counts a weighted sample.
    """
    return (1 - beta**steps) * (1 + beta) / ((1 + beta**steps) * (1 - beta))


def _warmup(model: Model) -> Found:
    from nanogpt_cli.recipe.sections import Optim, Train
    from nanogpt_cli.training.optim import lr_factor

    optim = model.optim or Optim()
    steps = model.max_steps or Train().max_steps
    first = lr_factor(0, optim, steps) * optim.lr
    values: dict[str, Value] = {
        "lr": optim.lr, "steps": optim.warmup_steps, "first": first, "beta": optim.betas[1],
        "max_steps": steps, "longer": 2 * optim.warmup_steps or 100, "schedule": optim.schedule,
    }  # fmt: skip
    for name in ("wte", "fc", "mlp_proj"):
        std = model.std(name)
        values |= {f"{name}_std": std, f"{name}_peak": optim.lr / std if std else math.inf,
                   f"{name}_first": first / std if std else math.inf}  # fmt: skip
    values |= {f"batches{n}": averaged(n, optim.betas[1]) for n in _COUNTS}
    shown = range(max(2, min(steps, _STEPS_SHOWN * max(optim.warmup_steps, 30))))
    curve = tuple(optim.lr * lr_factor(step, optim, steps) for step in shown)
    return Found(values, curves=(curve,))


_WARMUP: Final = Words(
    "Why start with a small learning rate?",
    (
        "Adam divides each gradient by its own recent size, so that the first step moves every "
        "weight by the learning rate, whatever the gradient. At the peak of {lr:g} that is a large "
        "part of a weight:",
    ),
    (Action("Which learning rate needs no warmup? Measured on your model:",
            "nanogpt init-inspect small --warmup"),
     Action("Warm up longer:", "nanogpt train small --set optim.warmup_steps={longer}")),
    table=(
        ("weights", "std", "step 1 at the peak", "step 1 with {steps} steps of warmup"),
        ("token table", "{wte_std:.3g}", "{wte_peak:.1%}", "{wte_first:.2%}"),
        ("MLP input", "{fc_std:.3g}", "{fc_peak:.1%}", "{fc_first:.2%}"),
        ("projections", "{mlp_proj_std:.3g}", "{mlp_proj_peak:.1%}", "{mlp_proj_first:.2%}"),
    ),
    picture=PictureWords("Learning rate over the first steps", ("{schedule}, {steps} of warmup",),
                         x_axis="step"),
    after=(
        "And the size it divides by is poorly known at first: with β₂ = {beta:g} the average "
        "amounts to {batches1:.0f} batch at step 1, {batches10:.1f} at step 10 and "
        "{batches100:.1f} at step 100. Warmup takes small steps meanwhile.",
        "A small peak needs no warmup; deeper models and higher peaks needed it with every scheme "
        "that was measured (nanogpt docs initialisation). Residual scaling is no substitute: "
        "it makes projections smaller, and so their first step larger beside them.",
    ),
)  # fmt: skip


def singular_values() -> tuple[list[float], list[float]]:
    """Singular values, largest first, of a made-up gradient and of Muon's update from it."""
    import torch

    from nanogpt_cli.recipe.sections import Optim
    from nanogpt_cli.training.optimizers.newton_schulz import orthogonalize

    rng = torch.Generator().manual_seed(0)
    out = torch.randn(_ROWS, _TOKENS * 2, generator=rng)
    into = torch.randn(_TOKENS * 2, _COLUMNS, generator=rng)
    sizes = torch.logspace(0, -1.5, _TOKENS * 2)[:, None]  # few directions prevail
    gradient = out @ (sizes * into)
    before = torch.linalg.svdvals(gradient)
    after = torch.linalg.svdvals(orthogonalize(gradient[None], Optim().ns_steps, torch.float32)[0])
    return (before / before[0]).tolist(), after.tolist()


def _matrices(c: GPTConfig) -> list[tuple[int, int]]:
    """The matrices of a block, queries, keys and values each by itself."""
    kv, hidden = (c.kv_size, c.n_embd), (c.hidden_size, c.n_embd)
    return [(c.q_size, c.n_embd), kv, kv, (c.n_embd, c.q_size), *[hidden] * (1 + c.gated),
            hidden[::-1]]  # fmt: skip


def block_parameters(config: GPTConfig) -> int:
    """Parameters that Muon takes: all matrices of the blocks."""
    return config.n_layer * sum(rows * columns for rows, columns in _matrices(config))


def muon_cost(rows: int, columns: int, steps: int) -> float:
    """FLOPs to make a matrix orthogonal: three products an iteration, on its shorter side."""
    small, large = sorted((rows, columns))
    return 2.0 * steps * small * small * (2 * large + small)


def _muon(model: Model) -> Found:
    from nanogpt_cli.model.accounting import account
    from nanogpt_cli.recipe.sections import Optim, Recipe

    c, optim, sizes = model.config, model.optim or Optim(), account(model.config)
    in_blocks = block_parameters(c)
    cost = c.n_layer * sum(muon_cost(a, b, optim.ns_steps) for a, b in _matrices(c))
    tokens = Recipe().train.batch_size * c.block_size
    before, after = singular_values()
    values: dict[str, Value] = {
        "smallest": before[-1], "low": min(after), "high": max(after), "rows": _ROWS,
        "columns": _COLUMNS, "iterations": optim.ns_steps, "in_blocks": in_blocks / 1e6,
        "share": in_blocks / sizes.parameters, "adamw_bytes": 8 * sizes.parameters / 2**20,
        "muon_bytes": (8 * sizes.parameters - 4 * in_blocks) / 2**20,
        "overhead": cost / (sizes.flops_training * tokens), "tokens": tokens,
        "lr": optim.lr, "muon_lr": optim.muon_lr,
    }  # fmt: skip
    units = {"adamw_bytes": "MiB", "muon_bytes": "MiB", "in_blocks": "million parameters"}
    return Found(values, curves=(tuple(before), tuple(after)), units=units)


_MUON: Final = Words(
    "What does Muon do that AdamW does not?",
    (
        "A gradient of a matrix has a few strong directions and many weak ones. AdamW evens out "
        "single weights, Muon whole directions: it replaces the momentum by the nearest matrix "
        "whose singular values are all about 1, in {iterations} Newton-Schulz iterations of "
        "matrix products. Of a made-up gradient ({rows} × {columns}, computed now) the smallest "
        "singular value is {smallest:.2g} of the largest; after the iterations all lie between "
        "{low:.3f} and {high:.3f}:",
    ),
    (Action("Train with it:", "nanogpt train small --set optim.name=muon"),
     Action("Cost and memory of a recipe:", "nanogpt plan small")),
    picture=PictureWords("Singular values, largest first", ("gradient", "Muon's update"),
                         x_axis="index"),
    after=(
        "Muon takes the matrices of the blocks, {in_blocks:.1f} million parameters "
        "({share:.0%}); tables, head, norms and biases stay with AdamW. It keeps one moment where "
        "AdamW keeps two: {muon_bytes:,.0f} MiB of optimizer state instead of "
        "{adamw_bytes:,.0f}.",
        "The iterations cost up to {overhead:.1%} of the arithmetic of a step of {tokens:,} "
        "tokens, less with larger steps. Its learning rate (optim.muon_lr, {muon_lr:g}) is "
        "about the size of a step in every direction and does not compare with AdamW's "
        "({lr:g}).",
    ),
)  # fmt: skip

CONCEPTS: Final = {
    "warmup": Concept({"en": _WARMUP}, _warmup),
    "muon": Concept({"en": _MUON}, _muon),
}
