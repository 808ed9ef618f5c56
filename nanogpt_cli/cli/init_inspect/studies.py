"""Studies of ``nanogpt init-inspect`` by theory: comparisons, ablations, scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nanogpt_cli import schemes
from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect.subject import InspectOptions, Subject, tokens
from nanogpt_cli.cli.init_inspect.tables import beside, number
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from rich.text import Text

    from nanogpt_cli.init.signals import Signals
    from nanogpt_cli.init.study import Variant
    from nanogpt_cli.schemes import Scheme

_COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}


def list_schemes(as_json: bool) -> None:
    """Print all schemes with their laws."""
    found = schemes.catalogue().values()
    if as_json:
        rows = [
            {"name": s.name, "aliases": list(s.aliases), "about": s.about, "formula": s.formula,
             "source": s.source, "mismatch": s.mismatch}
            for s in found
        ]  # fmt: skip
        console.emit_json({"schemes": rows})
        return
    table = console.simple_table("", ("scheme", "idea; law of the residual projections"))
    table.columns[1].no_wrap, table.columns[1].justify = False, "left"
    for s in found:
        mark = " (needs another architecture)" if s.mismatch else ""
        law = f"; {s.rules['mlp_proj']}"
        about = console.styled(s.about, (law, "cyan"), (mark, "yellow"))
        table.add_row(console.styled((s.name, "bold")), about)
    console.stdout().print(table)


def needs_scheme(subject: Subject) -> Scheme:
    """The scheme of a subject.

    Raises:
        UserError: it has none.
    """
    if subject.scheme is None:
        raise UserError(
            "this study varies a scheme, but the weights of --from have none",
            "name their scheme with --init, or leave --from out",
        )
    return subject.scheme


def side_by_side(
    subject: Subject, ask: InspectOptions, tokenizer: str, compare: str, ablate: str, measure: bool
) -> None:
    """Print schemes or ablations as rows of one table."""
    from nanogpt_cli.init import study

    scheme = needs_scheme(subject)
    if compare:
        names = [name for name in compare.split(",") if name]
        chosen = [scheme, *map(schemes.get, names)]
        unique = {s.name: s for s in chosen}
        variants = study.schemes_of(subject.config, list(unique.values()))
    else:
        variants = study.ablate(subject.config, scheme, [a for a in ablate.split(",") if a])
    length = ask.length if measure else min(ask.length, study.TOKENS)
    idx, targets, label = tokens(subject.config, ask.data, ask.batch, length, ask.seed, tokenizer)
    rows = []
    with console.progress_bar("comparing") as report:
        for n, variant in enumerate(variants):
            expected = variant.expected(idx, targets)
            measured = variant.measured(idx, targets, ask.seed) if measure else None
            rows.append((variant, expected, measured))
            if report:
                report(n + 1, len(variants))
    _show(rows, ask.as_json, f"{_shape(subject)}, {label}")


def _shape(subject: Subject) -> str:
    c = subject.config
    return f"{c.n_layer} layers × {c.n_embd} channels, vocabulary {c.vocab_size}"


def _show(
    rows: Sequence[tuple[Variant, Signals, Signals | None]], as_json: bool, title: str
) -> None:
    if as_json:
        answer = [
            {"name": v.name, "expected": e.to_dict(), "measured": m.to_dict() if m else None,
             "exponents": asdict(v.exponents(e))}
            for v, e, m in rows
        ]  # fmt: skip
        console.emit_json({"rows": answer})
        return
    out, measured = console.stdout(), rows[0][2] is not None
    title = f"{title} ({'measured' if measured else 'theory'})"
    most = 3 if console.room_for_tables() >= _WIDE else 1
    cells = [_cells(row, most) for row in rows]
    heads = list(cells[0])
    table = console.fitting(
        heads, [list(row.values()) for row in cells], numbers=heads[1:-1],
        spare=("logit std", "exp. g", "exp. x", "token", "x0", "λg", "λa", "cos"), title=title,
    )  # fmt: skip
    console.print_table(table)
    said = [f"{name}: {_LEGEND[name]}" for name in (c.header for c in table.columns)
            if name in _LEGEND]  # fmt: skip
    out.print("; ".join(said), style="dim")


_WIDE = 110  # columns from which three verdicts of a row are named
_LEGEND = {
    "x0": "stream RMS at the embedding",
    "xL": "stream RMS after the last block",
    "exp. x": "xL/x0 expected by theory",
    "g0/gL": "gradient at the embedding over that after the last block",
    "exp. g": "the same by theory",
    "own": "logit of the token just read",
    "logit std": "over the vocabulary",
    "token": "its share of the embedding's variance",
    "cos": "cosine between positions at the end",
    "λa": "log of the factor on 1 - cosine of like positions, per block (theory)",
    "λg": "log of the factor on the squared gradient, per block (theory)",
}


def _cells(row: tuple[Variant, Signals, Signals | None], most: int) -> dict[str, Text | str]:
    """The cells of one row by heading, with at most ``most`` verdicts."""
    variant, expected, measured = row
    shown = measured or expected
    cells: dict[str, Text | str] = {"model": console.styled((variant.name, "bold"))}
    cells["x0"], cells["xL"] = number(shown.stream_rms[0]), number(shown.stream_rms[-1])
    for heading, name in (("xL/x0", "growth"), ("g0/gL", "gradient_ratio")):
        cells[heading], theory = beside(getattr(shown, name), getattr(expected, name))
        if measured:
            cells[f"exp. {heading[0]}"] = theory
    excess = shown.loss_any - math.log(variant.config.vocab_size)
    cells["loss-ln V"] = f"{excess:+.3f}" if excess < 10 else f"{excess:+.0f}"
    cells["own"] = number(shown.own_logit)
    cells["logit std"] = number(shown.logit_std)
    cells["token"] = f"{shown.token_share:.2%}"
    cells["cos"] = f"{shown.cosine[-1]:.2f}"
    found = variant.exponents(expected)
    cells["λa"], cells["λg"] = f"{found.angle:+.3f}", f"{found.gradient:+.3f}"
    return {**cells, "verdicts": _marks(variant, shown, most)}


def _marks(variant: Variant, shown: Signals, most: int) -> Text:
    """Topics of the warnings and failures, the gravest first."""
    from nanogpt_cli.init import lint, lint_signals
    from nanogpt_cli.init.blueprint import Blueprint

    verdicts = lint_signals.on_signals(
        shown,
        variant.config,
        layer_norm=variant.layer_norm,
        by_position=Blueprint.of(variant.config, variant.scheme).by_position,
    )
    verdicts += lint.on_scheme(variant.scheme)
    bad = [v for v in verdicts if v.severity in ("warn", "fail")]
    bad.sort(key=lambda v: -lint.SEVERITIES.index(v.severity))
    if not bad:
        return console.styled(("✓", "green"))
    more = f" +{len(bad) - most}" if len(bad) > most else ""
    gaps = ("", *[" "] * most)
    topics = [(v.topic, _COLOURS[v.severity]) for v in bad[:most]]
    pieces = [piece for pair in zip(gaps, topics, strict=False) for piece in pair]
    return console.styled(*pieces, more)


def scan(subject: Subject, what: str, as_json: bool) -> None:
    """Print depths or widths as rows of a table, by theory."""
    from nanogpt_cli.init import study

    scheme = needs_scheme(subject)
    idx, targets = study.scan_tokens(subject.config)
    rows = []
    with console.progress_bar("scanning") as report:
        variants = list(study.scan(subject.config, scheme, what))
        for n, (_, variant) in enumerate(variants):
            rows.append((variant, variant.expected(idx, targets), None))
            if report:
                report(n + 1, len(variants))
    c = subject.config
    fixed = f"{c.n_embd} channels" if what == "depth" else f"{c.n_layer} layers"
    _show(rows, as_json, f"{scheme.name} over {what}, {fixed}")
