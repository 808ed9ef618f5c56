"""``nanogpt init-inspect --from`` for a module of any architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import foreign_files
from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect import printed, written
from nanogpt_cli.cli.init_inspect import subject as inputs
from nanogpt_cli.cli.init_inspect import verdicts as answers
from nanogpt_cli.cli.init_inspect.subject import InspectOptions
from nanogpt_cli.cli.init_inspect.written import About, Files
from nanogpt_cli.errors import UserError, naming

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.modules.graph.stream import Watched
    from nanogpt_cli.modules.inspection import ModuleInspection
    from nanogpt_cli.modules.sizes import Sizes
    from nanogpt_cli.modules.starts.build import Built

_CONFIG = "config.json"
# module:factory or path.py:factory, perhaps with arguments.
_REFERENCE = re.compile(r"[\w./\\-]+:[A-Za-z_][\w.]*(\(.*\))?", re.S)


def open_origin(
    origin: str, init: str, seed: int, structure: Path | None
) -> inputs.Subject | Built:
    """What ``--from`` names: a GPT of this package, or any other module.

    Args:
        origin: the value of ``--from``.
        init: that of ``--init``, for a GPT.
        seed: of the start of a module without weights.
        structure: that of ``--structure``, for any other module.

    Raises:
        UserError: nothing can be read or made of it, or an option does not apply to it.
    """
    if not _is_module(origin):
        if structure:
            raise UserError(
                f"--structure corrects what is found in a module, and {origin} is read as a GPT"
            )
        return inputs.stored(origin, init)
    from nanogpt_cli.modules.starts.build import build

    with console.stdout_kept():
        built = build(origin, seed)
    with _theirs(built):
        found = None if structure else _as_gpt(built, init)
    if isinstance(found, inputs.Subject):
        return found
    if init:
        raise UserError(
            f"--init names a scheme for GPT-2, and {origin} is another model",
            "leave it out: what the module's own code draws is read off",
        )
    return replace(built, notes=(*built.notes, found)) if found else built


def _is_module(origin: str) -> bool:
    """Whether ``--from`` names user code, a configuration without weights, or another model."""
    if _REFERENCE.fullmatch(origin) and not Path(origin.partition("(")[0]).exists():
        return True
    path = Path(origin)
    if path.name == _CONFIG:
        return True
    if not foreign_files.present(path / _CONFIG):
        return False
    kind = foreign_files.read_object(path / _CONFIG).get("model_type", "gpt2")
    return kind != "gpt2" or (not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")))


def _as_gpt(built: Built, init: str) -> inputs.Subject | str:
    """The module as a GPT of this package, or why it is another model; empty for a known one."""
    from nanogpt_cli.interop.module import adopt

    if built.fill is not None:
        return ""
    try:
        return inputs.of_model(adopt(built.module, built.label), built.label, init)
    except UserError as other:
        return f"measured as it is, because {other.message}"


def of_subject(subject: inputs.Subject) -> Built:
    """A GPT of this package with parts that only its own forward computes, as any module."""
    from nanogpt_cli.init.drawing import undrawn
    from nanogpt_cli.init.sources import load
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.modules.starts.build import Built

    with undrawn():
        model = GPT(subject.config)
    for name, parameter in model.named_parameters():
        load(subject.source, name, parameter.detach())
    scheme = subject.scheme
    drawn = (f"drawn from {scheme.name}: {scheme.formula}",) if scheme else ()
    return Built(model.eval(), subject.label, notes=(*subject.notes, *drawn))


def check_study(study: str) -> None:
    """Refuse a study of schemes on a module that none of them applies to."""
    if study:
        raise UserError(
            f"{study} needs a GPT of this package, whose schemes it varies",
            "name one by --n-layer and other options, or by a recipe",
        )


def inspect(built: Built, ask: InspectOptions, structure: Path | None, files: Files) -> str:
    """Measure a module, print what was found, and write files; returns the gravest severity.

    Raises:
        UserError: the module fails, or no residual stream is found in it.
    """
    from nanogpt_cli.init import lint
    from nanogpt_cli.modules.graph import override
    from nanogpt_cli.modules.inspection import inspect as measure
    from nanogpt_cli.modules.inspection import watch
    from nanogpt_cli.modules.sizes import tried_sizes

    files.check()
    for option, asked in (("--theory", ask.theory_only), ("--hist", ask.hist)):
        if asked:
            raise UserError(
                f"{option} is for a GPT of this package", "leave it out: a module is measured"
            )
    given = override.read_override(structure) if structure else None
    with _theirs(built):
        sizes = tried_sizes(built, ask.batch, ask.length)
    if not sizes.vocab_size:
        raise UserError(
            f"{built.label}: neither a configuration nor an nn.Embedding tells its vocabulary",
            "give the module a config with vocab_size",
        )
    ids, targets, label = _tokens(sizes, ask)
    with _theirs(built):
        anatomy = watch(built, ids, given)
    if not ask.as_json:
        _header(built, sizes, anatomy, f"{label}, seed {ask.seed}", details=ask.details)
    with _theirs(built), console.progress_bar("measuring") as report:
        result = measure(built, anatomy, ids, targets, backward=ask.gradients, progress=report)
        laws = _laws(built, anatomy)
    verdicts = [*result.verdicts, *laws]
    page = Page(built, sizes, anatomy, result, verdicts)
    if not ask.as_json:
        judged = answers.Judged(f"{label}, seed {ask.seed}", result.trained)
        shown = answers.answer(verdicts, judged, whole=ask.details)
        _measured(page, printed.Extent(ask.details, ask.full, shown), ids.numel())
    n_layer = len(anatomy.blocks)
    title = f"{built.label}: {n_layer} blocks × {anatomy.width} channels"
    about = About(built.label, title, page.parameters, sizes.vocab_size, n_layer)
    written.write(files, about, result.expected, result.found, verdicts)
    if ask.as_json:
        console.emit_json(_as_json(page))
    return lint.worst(verdicts)


@dataclass(frozen=True)
class Page:
    """A module and what was found in it.

    Attributes:
        built: the module.
        sizes: its vocabulary and the like.
        anatomy: its stream and roles.
        result: what was measured.
        verdicts: those on the measurement, and those on the code that draws its start.
    """

    built: Built
    sizes: Sizes
    anatomy: Watched
    result: ModuleInspection
    verdicts: list[Verdict]

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.built.module.parameters())


@contextmanager
def _theirs(built: Built) -> Iterator[None]:
    """Context for whatever runs the module's code: its prints go to stderr, its errors are named.

    An error of ours that its structure provokes is reported in the same way.
    """
    from nanogpt_cli.modules.starts.user_code import guarded

    failed = f"{built.label} cannot be inspected: it raised "
    with console.stdout_kept(), guarded(failed), naming(built.label):
        yield


def _tokens(sizes: Sizes, ask: InspectOptions) -> tuple[Tensor, Tensor, str]:
    limited = sizes if sizes.block_size else replace(sizes, block_size=ask.length)
    return inputs.tokens(limited, ask.data, ask.batch, ask.length, ask.seed)


def _laws(built: Built, anatomy: Watched) -> list[Verdict]:
    """Findings on the code that draws the module's start."""
    from nanogpt_cli.modules.starts.laws import start_laws
    from nanogpt_cli.modules.starts.laws_lint import findings

    laws = start_laws(built, [path for path in dict.fromkeys(anatomy.blocks) if path])
    return findings(laws or [], {part.parameter: part.role for part in anatomy.parts})


def _header(built: Built, sizes: Sizes, anatomy: Watched, tokens: str, *, details: bool) -> None:
    """Print what the module is, with ``details`` also the graph that was found in it."""
    from nanogpt_cli.modules.graph.describe import describe

    n_blocks = len(anatomy.blocks)
    size = f"{console.count(sum(p.numel() for p in built.module.parameters()))} parameters"
    about = f": {type(built.module).__name__}, {n_blocks} block{'s' if n_blocks != 1 else ''}, "
    about += f"{anatomy.width} channels, "
    tied = "tied head" if anatomy.tied else "untied head" if anatomy.head else "no head"
    about += f"vocabulary {sizes.vocab_size}, {tied}" if details else size
    rows = [("module", console.styled((built.label, "bold cyan"), about))]
    if details:
        for i, line in enumerate(describe(anatomy)):
            rows.append(("found" if i == 0 else "", console.styled(line)))
        lean = ", with the values of one block at a time" if built.fill is not None else ""
        rows.append(("size", console.styled(size + lean)))
        rows.append(("input", console.styled(f"{tokens}, evaluation mode")))
    printed.lines(rows, built.notes)


def _measured(page: Page, extent: printed.Extent, n_tokens: int) -> None:
    """Print what is not known, the chart and the tables."""
    out = console.stdout()
    result = page.result
    if result.unclaimed:
        lacks = "Theory leaves out" if result.expected else "No theory:"
        out.print(console.styled("\n", (lacks, "bold"), f" {result.unclaimed}"))
    if result.ungraded:
        out.print(console.styled(("No gradients:", "bold"), f" {result.ungraded}"))
    printed.measured(
        result.found, result.expected, n_embd=page.anatomy.width, tied=page.anatomy.tied,
        vocab_size=page.sizes.vocab_size if page.anatomy.head else 0, n_tokens=n_tokens,
        extent=extent,
    )  # fmt: skip


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
        "weights": [printed.tensor_row(t) for t in result.found.tensors],
        "verdicts": [asdict(v) for v in page.verdicts],
    }
