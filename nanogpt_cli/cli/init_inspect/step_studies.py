"""Studies of ``nanogpt init-inspect`` that train or differentiate a small model."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import typer

from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect.studies import needs_scheme
from nanogpt_cli.cli.init_inspect.subject import tokens
from nanogpt_cli.cli.init_inspect.tables import number
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from rich.text import Text

    from nanogpt_cli.cli.init_inspect.subject import InspectOptions, Subject
    from nanogpt_cli.recipe import Optim
    from nanogpt_cli.training.studies.coord_check import Coordinates, Exponent
    from nanogpt_cli.training.studies.sharpness import Sharpness

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
# A check over depth does not need a wide model, and 16 layers of 768 channels take minutes.
_WIDEST = 256


def coordinates(
    subject: Subject,
    over: str,
    scales: str,
    optimizer: str,
    seed: int,
    as_json: bool,
    lint: bool,
) -> None:
    """Run the coordinate check; with ``lint``, exit with code 1 if an exponent is wrong."""
    from nanogpt_cli.training.studies.coord_check import coord_check

    scheme = needs_scheme(subject)
    if over not in ("width", "depth"):
        raise UserError(f"--over {over} is unknown", "use width or depth")
    if optimizer not in _OPTIMIZERS:
        raise UserError(f"--optimizer {optimizer} is unknown", f"use {' or '.join(_OPTIMIZERS)}")
    config = subject.config
    if over == "depth" and config.n_embd > _WIDEST and config.head_size <= _WIDEST:
        n_head = _WIDEST // config.head_size
        config = config.widened(n_head * config.head_size)
    sizes = _sizes(over, scales)
    with console.progress_bar("training") as report:
        found = coord_check(
            config, scheme, sizes, over=over, optimizer=optimizer, seeds=(seed, seed + 1),
            progress=report,
        )  # fmt: skip
    if as_json:
        rows = [asdict(e) | {"right": e.right} for e in found.exponents()]
        console.emit_json({**asdict(found), "exponents": rows, "transfers": found.transfers})
    else:
        fixed = f"{config.n_embd} channels" if over == "depth" else f"{config.n_layer} layers"
        _show_coordinates(found, f"{scheme.name}, {fixed}, {_OPTIMIZERS[optimizer]}")
    if lint and not found.transfers:
        raise typer.Exit(1)


def _sizes(over: str, scales: str) -> list[int]:
    try:
        sizes = [int(w) for w in scales.split(",") if w]
    except ValueError:
        raise UserError(
            f"--{over}s {scales} is not a list of whole numbers", "write for example 64,128,256"
        ) from None
    if sizes and min(sizes) < 1:
        raise UserError(f"--{over}s {scales}: {over}s must be positive")
    return sizes


def _show_coordinates(found: Coordinates, title: str) -> None:
    from nanogpt_cli.training.studies.coord_check import TOLERANCE

    steps = len(found.losses[0]) - 1
    symbol = "d" if found.over == "width" else "L"
    changes = [f"step {n}" for n in range(1, steps + 1)]
    ends = (f"{symbol} = {found.scales[0]}", f"{symbol} = {found.scales[-1]}")
    heads = ("", *ends, *changes, "exponent", "expected", "verdict")
    rows: list[list[str | Text]] = []
    for e in found.exponents():
        step = 0 if e.what == "size" else -1
        sizes = [number(getattr(found, e.what)[e.name][n][step]) for n in (0, -1)]
        slopes = [""] * steps
        if e.what == "change":
            slopes = [f"{found.slope(e.name, n):+.2f}" for n in range(1, steps + 1)]
        allowed = f"{e.low:+g}" if e.low == e.high else f"{e.low:+g} … {e.high:+g}"
        name = f"{e.name} at start" if e.what == "size" else f"Δ {e.name}"
        exponent = f"{e.value:+.2f}"
        rows.append([name, *sizes, *slopes, exponent, allowed.replace("+0", "0"), _mark(e)])
    losses = [number(found.losses[n][-1]) for n in (0, -1)]
    rows.append([f"loss, step {steps}", *losses, *[""] * (steps + 3)])
    table = console.fitting(
        heads, rows, numbers=heads[1:-1], spare=(*changes[1:-1], *changes, *ends),
        title=f"Coordinate check over {found.over}: {title}",
    )  # fmt: skip
    out = console.stdout()
    console.print_table(table)
    out.print(
        f"Δ: RMS of the change since the start; its exponents of {found.over} by step, and their "
        f"mean. {TOLERANCE} beside the expected exponents is tolerated.",
        style="dim",
    )
    _judge(found)


def _mark(e: Exponent) -> Text:
    if math.isnan(e.value):
        return console.styled(("zero", "dim"))
    if e.right:
        return console.styled(("✓", "green"))
    return console.styled(("✗ grows" if e.excess > 0 else "✗ shrinks", "red"))


def _judge(found: Coordinates) -> None:
    out, worst = console.stdout(), found.worst
    if not all(math.isfinite(loss) for row in found.losses for loss in row):
        out.print(console.styled(("✗", "red"), " the loss did not stay finite"))
        return
    if found.transfers:
        text = f" the first steps change activations equally at every {found.over}: one learning "
        out.print(console.styled(("✓", "green"), text + "rate serves all"))
        return
    what = "the change of " if worst.what == "change" else ""
    name = {"scores": "the attention scores", "attn": "the attention branch",
            "mlp": "the MLP branch", "embed": "the embedding", "stream": "the stream",
            "logits": "the logits", "target": "the target's logit"}[worst.name]  # fmt: skip
    text = f" {what}{name} goes as {found.over}^{worst.value:+.2f} instead of "
    text += f"{found.over}^{worst.high if worst.excess > 0 else worst.low:g}: "
    grows = f"the best learning rate falls with {found.over}"
    shrinks = f"larger {found.over}s learn too little there"
    out.print(console.styled(("✗", "red"), text + (grows if worst.excess > 0 else shrinks)))


def warmup(subject: Subject, ask: InspectOptions, tokenizer: str, lint: bool) -> None:
    """Print the largest learning rate that needs no warmup, by preconditioned sharpness.

    With ``lint``, the exit code is 1 if the recipe exceeds it without any warmup.
    """
    from nanogpt_cli.init.drawing import build
    from nanogpt_cli.training.optim import Optimizers
    from nanogpt_cli.training.studies.sharpness import BATCHES, sharpness

    optim, scheme = subject.optim, subject.scheme
    if optim is None or scheme is None:
        raise UserError(
            "--warmup judges the learning rate of a recipe, but --from has none",
            "name a recipe instead",
        )
    if optim.name != "adamw":
        raise UserError(
            f"--warmup knows only the stability of AdamW, but the recipe asks for {optim.name}",
            "try --set optim.name=adamw",
        )
    config = replace(subject.config, dropout=0.0)
    n = max(ask.batch, BATCHES)
    drawn = [
        tokens(config, ask.data, n, ask.length, ask.seed + i, tokenizer) for i in range(BATCHES)
    ]
    batches = [(idx, targets) for idx, targets, _ in drawn]
    model = build(config, scheme, ask.seed)
    optimizers = Optimizers(model, optim, scheme, max_steps=1)
    with console.progress_bar("differentiating") as report:
        first = sharpness(model, optimizers, batches[:1], progress=report)
        later = sharpness(model, optimizers, batches, progress=report)
    below = optim.lr <= later.limit
    if ask.as_json:
        console.emit_json(
            {"lr": optim.lr, "warmup_steps": optim.warmup_steps, "below": below,
             "limit": later.limit, "sharpness": later.value,
             "limit_first_step": first.limit, "sharpness_first_step": first.value}
        )  # fmt: skip
    else:
        _show_warmup(first, later, optim, f"{BATCHES} batches of {drawn[0][2]}")
    if lint and not below and not optim.warmup_steps:
        raise typer.Exit(1)


def _show_warmup(first: Sharpness, later: Sharpness, optim: Optim, label: str) -> None:
    out = console.stdout()
    title = "Largest learning rate without warmup, by preconditioned sharpness λ"
    table = console.simple_table(title, ("Adam's second moment of", "λ", "limit"))
    table.add_row("the first batch alone", f"{first.value:.2g}", f"{first.limit:.1e}")
    table.add_row(label, f"{later.value:.2g}", f"{later.limit:.1e}")
    out.print(table)
    bound = (2 + 2 * later.beta1) / (1 - later.beta1)
    out.print(f"limit: {bound:.0f}/λ, where Adam is no longer stable on a quadratic", style="dim")
    times, steps = optim.lr / later.limit, optim.warmup_steps
    own = f" the recipe's lr {optim.lr:g} is {times:.2g} times the limit after a few batches: "
    if times <= 1:
        more = f"; its {steps} steps of warmup cost little" if steps else ""
        out.print(console.styled(("✓", "green"), f"{own}by this measure it needs no warmup{more}"))
    elif steps:
        out.print(console.styled(("✓", "green"), f"{own}keep its {steps} steps of warmup"))
    else:
        advice = f"set optim.warmup_steps, or optim.lr below {later.limit:.1e}"
        out.print(console.styled(("!", "yellow"), f"{own}{advice}"))
