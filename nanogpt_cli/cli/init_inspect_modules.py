"""``nanogpt init-inspect --from`` for a module of any architecture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.cli import console
from nanogpt_cli.cli import init_inspect_input as inputs
from nanogpt_cli.cli import init_inspect_output as output
from nanogpt_cli.cli import init_inspect_tables as tables
from nanogpt_cli.cli.init_inspect_input import InspectOptions
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.modules.build import Built
    from nanogpt_cli.modules.inspection import ModuleInspection, Sizes
    from nanogpt_cli.modules.stream import Watched

# Drawing a larger start twice to read off its laws takes minutes.
_MOST_DRAWN = 300_000_000


@dataclass(frozen=True)
class Page:
    """A module and what was found in it.

    Attributes:
        built: the module.
        sizes: its vocabulary and the like.
        tokens: the tokens it was measured on, in words.
        anatomy: its stream and roles.
        result: what was measured.
        verdicts: those of the measurement and those on its code for initial values.
    """

    built: Built
    sizes: Sizes
    tokens: str
    anatomy: Watched
    result: ModuleInspection
    verdicts: list[Verdict]

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.built.module.parameters())


def inspect(built: Built, ask: InspectOptions, structure: Path | None) -> Page:
    """Measure a module and print what was found.

    Raises:
        UserError: the module fails, or no residual stream is found in it.
    """
    from nanogpt_cli.modules import override, stream
    from nanogpt_cli.modules.inspection import inspect as measure
    from nanogpt_cli.modules.inspection import sizes_of

    given = override.read_override(structure) if structure else None
    sizes = sizes_of(built.module)
    if not sizes.vocab_size:
        raise UserError(
            f"{built.label}: neither a configuration nor an nn.Embedding tells the vocabulary",
            "give the module a config with vocab_size",
        )
    ids, targets, label = _tokens(sizes, ask)
    with console.stdout_kept():
        anatomy = stream.watch(built.module, ids, override=given)
    if not ask.as_json:
        _header(built, sizes, anatomy, label, ask.seed)
    with console.stdout_kept(), console.progress_bar("measuring") as report:
        result = measure(
            built, anatomy, ids, targets, backward=ask.gradients, progress=report
        )
        laws = _laws(built, anatomy)
    page = Page(built, sizes, label, anatomy, result, [*result.verdicts, *laws])
    if ask.as_json:
        console.emit_json(_as_json(page))
    else:
        _measured(page, ask, ids.numel())
    return page


def _tokens(sizes: Sizes, ask: InspectOptions) -> tuple[Tensor, Tensor, str]:
    limited = sizes if sizes.block_size else _unlimited(sizes)
    return inputs.tokens(limited, ask.data, ask.batch, ask.length, ask.seed)


def _unlimited(sizes: Sizes) -> Sizes:
    from dataclasses import replace

    return replace(sizes, block_size=1 << 30)


def _laws(built: Built, anatomy: Watched) -> list[Verdict]:
    """Findings on the code that draws a start; none where drawing it again would take long."""
    from nanogpt_cli.modules.laws import read_laws
    from nanogpt_cli.modules.laws_lint import findings

    size = sum(p.numel() for p in built.module.parameters())
    redraw = built.redraw
    if redraw is None or size > _MOST_DRAWN:
        return []
    roles = {part.parameter: part.role for part in anatomy.parts}
    return findings(read_laws(lambda seed: redraw(seed).whole()), roles)


def _header(built: Built, sizes: Sizes, anatomy: Watched, tokens: str, seed: int) -> None:
    """Print what the module is and the graph that was found in it."""
    from rich.table import Table

    from nanogpt_cli.modules.describe import describe

    n = console.count
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    kind = type(built.module).__name__
    tied = "tied head" if anatomy.tied else "untied head" if anatomy.head else "no head"
    about = f"{len(anatomy.blocks)} blocks, {anatomy.width} channels, "
    about += f"vocabulary {sizes.vocab_size}, {tied}"
    grid.add_row("module", console.styled((built.label, "bold cyan"), f": {kind}, {about}"))
    for i, line in enumerate(describe(anatomy)):
        grid.add_row("found" if i == 0 else "", console.styled(line))
    total = sum(p.numel() for p in built.module.parameters())
    lean = ", with the values of one block at a time" if built.fill is not None else ""
    grid.add_row("size", f"{n(total)} parameters{lean}")
    grid.add_row("input", f"{tokens}, seed {seed}, evaluation mode")
    for note in built.notes:
        grid.add_row("note", console.styled((note, "yellow")))
    console.stdout().print(grid)


def _measured(page: Page, ask: InspectOptions, n_tokens: int) -> None:
    """Print tables and verdicts."""
    out = console.stdout()
    result = page.result
    if result.unclaimed:
        out.print(console.styled("\n", ("No theory", "bold"), f": {result.unclaimed}"))
    if result.ungraded:
        out.print(console.styled(("No gradients", "bold"), f": {result.ungraded}"))
    output.tables_of(
        result.found, result.expected, width_of_model=page.anatomy.width, tied=page.anatomy.tied,
        vocab_size=page.sizes.vocab_size if page.anatomy.head else 0, n_tokens=n_tokens,
        full=ask.full,
    )  # fmt: skip
    output.judge(page.verdicts)


def _as_json(page: Page) -> dict[str, Any]:
    """The whole inspection as plain values."""
    anatomy, result = page.anatomy, page.result
    return {
        "module": {
            "label": page.built.label,
            "class": type(page.built.module).__name__,
            "parameters": page.parameters,
            "vocab_size": page.sizes.vocab_size,
        },
        "structure": {
            "width": anatomy.width,
            "tied": anatomy.tied,
            "blocks": list(anatomy.blocks),
            "writes": [asdict(write) for write in anatomy.writes],
            "norms": list(anatomy.norms),
            "parts": [
                {"parameter": p.parameter, "key": p.key, "role": p.role, "layer": p.layer}
                for p in anatomy.parts
            ],
        },
        "trained": result.trained,
        "expected": result.expected.to_dict() if result.expected else None,
        "unclaimed": result.unclaimed,
        "measured": result.found.signals.to_dict(),
        "weights": [output.tensor_row(t) for t in result.found.tensors],
        "verdicts": [asdict(v) for v in page.verdicts],
    }
