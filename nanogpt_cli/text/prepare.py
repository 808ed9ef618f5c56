"""``prepare``: any text to ``train.bin``, ``val.bin``, ``tokenizer.json`` and ``manifest.json``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_cli import files, host, places
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import catalogue, look, nanogpt_data, receipt, shelf, target, tokens
from nanogpt_cli.text.build import Build, PrepareProgress
from nanogpt_cli.text.request import (
    STDIN,
    VAL_FRACTION,
    Reporter,
    Request,
    checked,
    default_name,
    of_recipe,
)
from nanogpt_cli.text.sources.documents import Tally
from nanogpt_cli.text.sources.inputs import StandardInput, TextSource, expand
from nanogpt_cli.text.tokenizers import bpe, factory
from nanogpt_cli.user_input import expanded

__all__ = ["VAL_FRACTION", "PrepareProgress", "Prepared", "Request", "ensure", "prepare", "ready"]


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

    The set appears under its name in one step; an interrupted run leaves no partial set. A set
    that was prepared otherwise stays as it is, also if the text has changed since (``shelf``).

    Args:
        name: the set's name; by default the first input's.
        out: its folder; by default ``places.data_folder(name, tokenizer)``, or that of NAME-2, …
            where other sets are.
        force: make it again even when it is up to date, and replace what its folder holds.
        workers: threads that tokenize; by default one per core.
        report: receives a short line for each step.
        progress: receives the counters, several times a second.

    Raises:
        UserError: an input is missing, unreadable or empty, ``out`` holds another set, or the data
            cannot be written.
    """
    request = checked(request)
    tally = Tally()
    name = name or default_name(request)
    sources = open_sources(request, tally, report)
    while True:
        place = shelf.place(request, sources, name, out, force=force)
        if place.current and not force:
            return Prepared(place.folder, tokens.read_manifest(place.folder).raw, fresh=False)
        with target.locked(place.folder, report):
            if shelf.place(request, sources, name, out, force=force) != place:
                continue  # another run has made a set while this one waited
            target.remove_leftovers(place.folder)
            target.check_replaceable(place.folder)
            _say_what_becomes(place, report)
            with (
                files.readable_os_errors("write the data set", place.folder),
                contextlib.suppress(_AlreadyThere),
                files.new_folder(place.folder, replace=True) as fresh,
            ):
                if old := _nanogpt_folder(request):
                    manifest = nanogpt_data.import_folder(old, fresh, name, request)
                else:
                    threads = workers or host.usable_cores()
                    build = Build(request, name, sources, fresh, threads, report, progress, tally)
                    manifest = build.run()
                twin = shelf.twin(manifest, request, name) if place.kept else None
                if twin:
                    raise _AlreadyThere
                return Prepared(place.folder, manifest, fresh=True)
        assert twin is not None
        return Prepared(twin, tokens.read_manifest(twin).raw, fresh=False)


class _AlreadyThere(Exception):  # noqa: N818 - no error
    """What was made equals a set that could not be compared before: see ``shelf.twin``."""


def _say_what_becomes(place: shelf.Place, report: Reporter) -> None:
    """What happens to the set that was prepared before, if there is one."""
    if place.folder.exists():
        report(f"preparing {place.folder} again: {place.reason or '--force was given'}")
    elif place.kept:
        report(f"{place.kept} stays as it is: {place.reason}")


def open_sources(request: Request, tally: Tally, report: Reporter) -> list[TextSource]:
    """The sources of a checked request; nothing large is read yet."""
    if (old := _nanogpt_folder(request)) is not None:
        return nanogpt_data.sources(old)
    sources: list[TextSource] = []
    for text in request.inputs:
        named = catalogue.find(text)
        if named:
            sources += catalogue.sources(named, report)
        elif text == STDIN:
            sources.append(StandardInput())
        elif not Path(text).is_absolute():
            raise catalogue.unknown(text)
        else:
            sources += expand([text], request.glob, request.encoding, tally)
    return sources


def _nanogpt_folder(request: Request) -> Path | None:
    """The only input if it is a data folder that nanoGPT's scripts wrote, else None."""
    if len(request.inputs) != 1 or catalogue.find(request.inputs[0]):
        return None
    folder = Path(request.inputs[0])
    return folder if nanogpt_data.looks_like(folder) else None


def ensure(data: Mapping[str, Any], *, report: Reporter) -> Path:
    """The folder of a recipe's data set, prepared now if it is missing.

    Args:
        data: a recipe's table ``[data]``; missing keys have their defaults. Its ``name`` may also
            be a prepared folder, or the name of a set that was prepared before; that set is used
            as it is.
        report: receives a short line for each step, and for each option of which a set that is
            used as it is differs from the request.

    Raises:
        UserError: there are no such inputs, or they cannot be prepared.
    """
    request = of_recipe(data)
    if folder := _as_it_is(request):
        if difference := target.difference(folder, request, named=True):
            report(f"{folder} is used as it was prepared: {difference}")
        return folder
    request = checked(request)
    if folder := _up_to_date(request, report):
        return folder
    report(f"preparing {', '.join(request.inputs)} with the tokenizer {request.tokenizer}")
    made = prepare(request, report=report)
    if made.fresh:
        report(f"prepared {made.folder}")
        for note in receipt.notes(made.manifest):
            report(f"note: {note}")
    return made.folder


def ready(data: Mapping[str, Any]) -> Path | None:
    """The folder that ``ensure`` would use as it is; ``None`` if it would prepare the set.

    Args:
        data: as of ``ensure``.

    Raises:
        UserError: as ``ensure``, as far as that can be told without reading a text.
    """
    request = of_recipe(data)
    return _as_it_is(request) or _up_to_date(checked(request), _silent)


def _up_to_date(request: Request, report: Reporter) -> Path | None:
    """A set that is what a checked request asks for, whatever its name."""
    found = shelf.any_of(request)
    if found is None or all(map(catalogue.find, request.inputs)):
        return found  # named texts never change, and may be gone
    return shelf.current(request, open_sources(request, Tally(), report))


def _as_it_is(request: Request) -> Path | None:
    """The prepared set that the request names instead of a text, if it does."""
    if len(request.inputs) != 1:
        return None
    name = request.inputs[0]
    path = expanded(name)
    if tokens.is_prepared(path):
        return path
    if catalogue.find(name) or path.exists() or name == STDIN:
        return None
    if path.name == name:  # a set whose text had another name, or is gone
        folder = places.data_folder(name, request.tokenizer)
        if tokens.is_prepared(folder):
            return shelf.newest(folder)
    raise catalogue.unknown(name)


def vocabulary_size(data: Mapping[str, Any], *, report: Reporter) -> int:
    """How many token ids a recipe's data has. It is prepared if nothing else can tell.

    Args:
        data: as of ``ensure``.
        report: as of ``ensure``.

    Raises:
        UserError: as ``ensure``.
    """
    request = of_recipe(data)
    if folder := _as_it_is(request):
        return tokens.read_manifest(folder).vocab_size
    kind, only = request.tokenizer, request.inputs[0] if len(request.inputs) == 1 else ""
    if kind != "char" and bpe.trained_size(kind) is None:
        return factory.get(kind, eot=request.eot).vocab_size
    if published := catalogue.published_size(only, kind):
        return published[0]
    if kind == "char" and (named := catalogue.find(only)) and named.characters:
        return named.characters + request.eot
    return tokens.read_manifest(ensure(data, report=report)).vocab_size


def find(name: str, tokenizer: str | None = None) -> Path:
    """The folder of a set prepared before, by path, folder name or set name.

    Raises:
        UserError: there is none; the message lists the prepared sets.
    """
    path = expanded(name)
    if tokens.is_prepared(path):
        return path
    found = look.prepared_folders()
    wanted = f"{name}-{tokenizer}".replace(":", "-") if tokenizer else name
    of_name = [p for p in found if not tokenizer and tokens.read_manifest(p).name == name]
    for path in (*(p for p in found if p.name == wanted), *of_name[:1]):
        return shelf.newest(path) if path in of_name else path
    there = ", ".join(dict.fromkeys(p.name for p in found)) or "none yet"
    raise UserError(
        f"no prepared data set is called {wanted!r}",
        f"prepared sets: {there}; make one with `nanogpt prepare`",
    )
