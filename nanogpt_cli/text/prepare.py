"""``prepare``: any text to ``train.bin``, ``val.bin``, ``tokenizer.json`` and ``manifest.json``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_cli import files, host, places
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import bpe, catalogue, look, nanogpt_data, receipt, target, tokenizers, tokens
from nanogpt_cli.text.build import Build, PrepareProgress
from nanogpt_cli.text.documents import Tally
from nanogpt_cli.text.request import (
    STDIN,
    VAL_FRACTION,
    Reporter,
    Request,
    checked,
    default_name,
    of_recipe,
    tokenizer_label,
)
from nanogpt_cli.text.sources import StandardInput, TextSource, expand
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
        with (
            files.readable_os_errors("write the data set", folder),
            files.new_folder(folder, replace=True) as fresh,
        ):
            if old := _nanogpt_folder(request):
                manifest = nanogpt_data.import_folder(old, fresh, name, request)
            else:
                threads = workers or host.usable_cores()
                build = Build(request, name, sources, fresh, threads, report, progress, tally)
                manifest = build.run()
    return Prepared(folder, manifest, fresh=True)


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


def _default_folder(name: str, request: Request) -> Path:
    """The set's folder; a set of the same name made from other inputs is never replaced."""
    folder = places.data_folder(name, tokenizer_label(request))
    if not tokens.is_prepared(folder) or target.same_inputs(folder, request):
        return folder
    mark = files.sha256_bytes("\n".join(request.to_json()["inputs"]).encode())[:6]
    return places.data_folder(f"{name}-{mark}", tokenizer_label(request))


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
    folder = _satisfying(request)
    if folder and all(map(catalogue.find, request.inputs)):
        return folder  # these texts never change, and may be gone
    if folder is None:
        folder, own = _folders(request)
        if tokens.is_prepared(folder):  # made otherwise, by a person or for another recipe
            report(f"{folder} was prepared otherwise: {target.difference(folder, request)}")
            folder = own
        inputs = ", ".join(request.inputs)
        report(f"preparing {inputs} with the tokenizer {request.tokenizer}")
    made = prepare(request, out=folder, report=report)
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
    return _as_it_is(request) or _satisfying(checked(request))


def _satisfying(request: Request) -> Path | None:
    """A set that was prepared as a checked request asks, whatever its name."""
    for folder in dict.fromkeys((*_folders(request), *look.prepared_folders())):
        with contextlib.suppress(UserError):  # a damaged set satisfies nothing
            if tokens.is_prepared(folder) and not target.difference(folder, request):
                return folder
    return None


def _folders(request: Request) -> tuple[Path, Path]:
    """Where a checked request's set lies; the second if the first is taken by another request."""
    name, label = default_name(request), tokenizer_label(request)
    mark = files.checksum(request.to_json())[:6]
    return _default_folder(name, request), places.data_folder(f"{name}-{mark}", label)


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
            return folder
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
        return tokenizers.get(kind, eot=request.eot).vocab_size
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
    for path in found:
        if path.name == wanted or (not tokenizer and tokens.read_manifest(path).name == name):
            return path
    there = ", ".join(dict.fromkeys(p.name for p in found)) or "none yet"
    raise UserError(
        f"no prepared data set is called {wanted!r}",
        f"prepared sets: {there}; make one with `nanogpt prepare`",
    )
