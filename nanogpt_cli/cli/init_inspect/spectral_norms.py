"""Spectral norms of every matrix, for ``nanogpt init-inspect --all``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect.tables import beside, number

if TYPE_CHECKING:
    from nanogpt_cli.cli.init_inspect.subject import Subject
    from nanogpt_cli.init.spectral import SpectralNorm


def measure(subject: Subject) -> list[SpectralNorm]:
    """The norms of the subject's matrices."""
    from nanogpt_cli.init.spectral import spectral_norms

    with console.progress_bar("spectral norms") as report:
        return spectral_norms(subject.source, report)


def _rate(subject: Subject) -> float:
    """Muon's learning rate in the recipe, or its default."""
    from nanogpt_cli.recipe import Optim

    return (subject.optim or Optim()).muon_lr


def _update(norm: SpectralNorm, rate: float) -> float:
    """Muon's step over the norm; NaN for a matrix of zeros, and for the head, which is AdamW's."""
    of_block = norm.key.startswith("transformer.h.")
    return norm.muon_update(rate) if norm.norm and of_block else math.nan


def show(norms: Sequence[SpectralNorm], subject: Subject) -> None:
    """Print one row per matrix."""
    rate = _rate(subject)
    heads = ("", "shape", "‖W‖₂", "exp.", "over √(out/in)", "Muon's step / ‖W‖₂")
    table = console.simple_table("Spectral norms", heads)
    for n in norms:
        name = n.key.removeprefix("transformer.").replace(".weight", "")
        shape = "×".join(map(str, n.shape))
        update = _update(n, rate)
        table.add_row(name, shape, *beside(n.norm, n.expected), number(n.condition), number(update))
    out = console.stdout()
    out.print(table)
    out.print(
        f"The spectral condition keeps ‖W‖₂ over √(out/in) the same at every width; Muon's step "
        f"has the norm {rate:g}·√max(1, out/in)",
        style="dim",
    )


def as_json(norms: Sequence[SpectralNorm], subject: Subject) -> list[dict[str, Any]]:
    """One entry per matrix."""
    rate = _rate(subject)
    return [asdict(n) | {"condition": n.condition, "muon_update": _update(n, rate)} for n in norms]
