"""``prepare``: any text to ``train.bin``, ``val.bin``, ``tokenizer.json`` and ``manifest.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_cli import files, host, places
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import catalogue, imported, look, target, tokens
from nanogpt_cli.text.build import Build, PrepareProgress
from nanogpt_cli.text.documents import Tally
from nanogpt_cli.text.request import (
    VAL_FRACTION,
    Reporter,
    Request,
    checked,
    default_name,
    nanogpt_folder,
    open_sources,
    tokenizer_label,
)
from nanogpt_cli.text.sources import TextSource

__all__ = ["VAL_FRACTION", "PrepareProgress", "Prepared", "Request", "ensure", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """The result of ``prepare``.

    Attributes:
        folder: the folder of the set.
        manifest: the JSON object of its ``manifest.json``.
        fresh: True if it was made now, False if it existed and was up to date.
    """

    folder: Path
    manifest: dict[str, Any]
    fresh: bool


def _silent(_: object) -> None:
    return None


def prepare(
    request: Request,
    *,
    name: str | None = None,
    out: Path | None = None,
    force: bool = False,
    workers: int | None = None,
    report: Reporter = _silent,
    progress: Callable[[PrepareProgress], None] = _silent,
) -> Prepared:
    """Make the data set that ``request`` asks for, unless it exists and is up to date.

    The set appears under its name in one step; an interrupted run leaves no partial set.

    Args:
        name: the set's name; by default the first input's.
        out: its folder; by default ``places.data_folder(name, tokenizer)``.
        force: make it again even when it is up to date.
        workers: threads that tokenize; by default one per core.
        report: receives a short line for each step.
        progress: receives the counters, several times a second.

    Raises:
        UserError: an input is missing, unreadable or empty, or the data cannot be written.
    """
    request = checked(request)
    tally = Tally()
    name = name or default_name(request)
    sources = open_sources(request, tally, report)
    folder = (out or _default_folder(name, request)).absolute()
    if not force and not target.what_changed(folder, request, sources):
        return Prepared(folder, tokens.read_manifest(folder).raw, fresh=False)
    with target.locked(folder, report):
        changed = target.what_changed(folder, request, sources)
        if not force and not changed:  # another run made it while this one waited
            return Prepared(folder, tokens.read_manifest(folder).raw, fresh=False)
        target.remove_leftovers(folder)
        target.check_replaceable(folder)
        if folder.exists():
            report(f"preparing {folder} again: {changed or '--force was given'}")
        manifest = _make(
            request, name, sources, folder, workers or host.usable_cores(), report, progress, tally
        )
    return Prepared(folder, manifest, fresh=True)


def _make(
    request: Request,
    name: str,
    sources: list[TextSource],
    folder: Path,
    workers: int,
    report: Reporter,
    progress: Callable[[PrepareProgress], None],
    tally: Tally,
) -> dict[str, Any]:
    with (
        files.readable_os_errors("write the data set", folder),
        files.new_folder(folder, replace=True) as fresh,
    ):
        old = nanogpt_folder(request)
        if old:
            return imported.import_folder(old, fresh, name, request)
        return Build(request, name, sources, fresh, workers, report, progress, tally).run()


def _default_folder(name: str, request: Request) -> Path:
    """The set's folder; a set of the same name made from other inputs is never replaced."""
    folder = places.data_folder(name, tokenizer_label(request))
    if not tokens.is_prepared(folder) or target.same_inputs(folder, request):
        return folder
    mark = files.sha256_bytes("\n".join(request.to_json()["inputs"]).encode())[:6]
    return places.data_folder(f"{name}-{mark}", tokenizer_label(request))


def ensure(name: str, tokenizer: str, *, val_fraction: float, report: Reporter) -> Path:
    """The folder of a recipe's data set, prepared now if it is missing.

    Args:
        name: a named set, a prepared folder, or the path of a text file or folder.
        tokenizer: the kind of tokenizer; ignored for a folder that is prepared already.
        val_fraction: as in the recipe.
        report: receives a short line for each step.

    Raises:
        UserError: nothing is called ``name``, or it cannot be prepared.
    """
    if tokens.is_prepared(Path(name)):
        return Path(name)
    request = Request((name,), tokenizer=tokenizer, val_fraction=val_fraction)
    known = catalogue.find(name) is not None or Path(name).exists()
    label = tokenizer_label(checked(request)) if known else tokenizer
    folder = places.data_folder(name, label) if Path(name).name == name else None
    if folder is not None and tokens.is_prepared(folder):
        held = tokens.read_manifest(folder).val_fraction
        if held == val_fraction or not known:
            if held != val_fraction:
                report(f"{folder} was split with val_fraction {held:g}; it is used unchanged")
            return folder
        return _make_missing(request, f"{name}-val{val_fraction:g}", report)
    if not known:
        raise catalogue.unknown(name)
    return _make_missing(request, None, report)


def _make_missing(request: Request, name: str | None, report: Reporter) -> Path:
    report(f"preparing {request.inputs[0]} with the tokenizer {request.tokenizer}")
    made = prepare(request, name=name, report=report)
    if made.fresh:
        report(f"prepared {made.folder}")
    return made.folder


def find(name: str, tokenizer: str | None = None) -> Path:
    """The folder of a set prepared before, by path, folder name or set name.

    Raises:
        UserError: there is none; the message lists the prepared sets.
    """
    if tokens.is_prepared(Path(name)):
        return Path(name)
    found = look.prepared_folders()
    wanted = f"{name}-{tokenizer}".replace(":", "-") if tokenizer else name
    for path in found:
        if path.name == wanted or (not tokenizer and tokens.read_manifest(path).name == name):
            return path
    there = ", ".join(dict.fromkeys(p.name for p in found)) or "none yet"
    raise UserError(
        f"no prepared data set is called {wanted!r}",
        f"prepared sets: {there}; make one with `nanogpt prepare`",
    )
