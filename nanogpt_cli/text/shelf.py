"""Which folder holds the set of a request, and which one a new set gets.

A set is never changed once it is written, because a run may have been trained on it: the same text
with other content or other options becomes a set beside it. Only ``--force`` replaces one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_cli import places
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import look, target, tokens
from nanogpt_cli.text.request import STDIN, Request, tokenizer_label
from nanogpt_cli.text.sources.inputs import TextSource


@dataclass(frozen=True)
class Place:
    """A folder for the set of a request.

    Attributes:
        folder: absolute.
        current: it holds that set already, whole and up to date.
        reason: why it is made again, or why another set does not do; empty if nothing is there.
        kept: the set that does not do and stays as it is; ``None`` if there is none.
    """

    folder: Path
    current: bool = False
    reason: str = ""
    kept: Path | None = None


def place(
    request: Request, sources: list[TextSource], name: str, out: Path | None, *, force: bool
) -> Place:
    """Where the set of a checked request lies, or will lie.

    Args:
        request: a checked one.
        sources: its sources.
        name: of the set.
        out: the folder that the user has chosen; ``None`` for one that is named after the set.
        force: replace what the user has chosen, or else the last set of this request.

    Raises:
        UserError: the folder that the user has chosen holds another set.
    """
    if out is not None:
        return _chosen(request, sources, out.absolute(), force=force)
    alike = _alike(request, name)
    changes = {folder: target.outdated(folder, request, sources) for folder in alike}
    for folder, changed in changes.items():
        if not changed:
            damage = target.damage(folder)  # nothing whole is lost with a damaged set
            return Place(folder.absolute(), current=not damage, reason=damage)
    newest = max(alike, key=look.written, default=None)
    if force and newest is not None:
        return Place(newest.absolute(), reason=changes[newest])
    folder, taken = _free(name, tokenizer_label(request), force=force)
    if (kept := newest or taken) is None:
        return Place(folder.absolute())
    reason = changes.get(kept) or target.difference(kept, request)
    reason = reason or f"its name is {tokens.read_manifest(kept).name!r}"
    return Place(folder.absolute(), reason=reason, kept=kept)


def _chosen(request: Request, sources: list[TextSource], folder: Path, *, force: bool) -> Place:
    changed = target.what_changed(folder, request, sources)
    if changed and tokens.is_prepared(folder) and not force and not target.damage(folder):
        raise UserError(
            f"{folder} holds another set: {changed}",
            "choose another folder with --out, or replace that set with --force; a run that was "
            "trained on it could then not be resumed",
        )
    return Place(folder, current=not changed, reason=changed)


def _free(name: str, label: str, *, force: bool) -> tuple[Path, Path | None]:
    """The first of the folders NAME, NAME-2, … that holds no set, and the last one that does.

    Raises:
        UserError: a set on the way cannot be read and is not to be replaced.
    """
    number, taken = 1, None
    while True:
        folder = places.data_folder(name if number == 1 else f"{name}-{number}", label)
        if not tokens.is_prepared(folder):
            return folder, taken
        try:
            tokens.read_manifest(folder)
            taken = folder
        except tokens.NewerVersionError:
            pass
        except UserError:
            if force:
                return folder, None
            raise
        number += 1


def current(request: Request, sources: list[TextSource]) -> Path | None:
    """A set of any name that is what a checked request asks for, whole and up to date."""
    found = (f for f in _of_request(request) if not target.what_changed(f, request, sources))
    return next(found, None)


def any_of(request: Request) -> Path | None:
    """A set of any name that was prepared as a checked request asks, whatever became of its text.

    For texts that never change, and may be gone.
    """
    return next(_of_request(request), None)


def _of_request(request: Request) -> Iterator[Path]:
    for folder in look.prepared_folders():
        with contextlib.suppress(UserError):  # a damaged manifest satisfies nothing
            if not target.difference(folder, request):
                yield folder


def _alike(request: Request, name: str) -> list[Path]:
    return [f for f in _of_request(request) if tokens.read_manifest(f).name == name]


def twin(manifest: dict[str, Any], request: Request, name: str) -> Path | None:
    """The set that was made before from the same standard input.

    That it is the same shows only when it has been read and a new set is made.
    """
    if STDIN not in request.inputs:
        return None
    made = _content(manifest)
    found = (f for f in _alike(request, name) if _content(tokens.read_manifest(f).raw) == made)
    return next((f.absolute() for f in found), None)


def _content(manifest: dict[str, Any]) -> tuple[object, ...]:
    hashes = (manifest[split]["sha256"] for split in tokens.SPLITS)
    return manifest["tokenizer"]["fingerprint"], manifest["sources"].get("sha256"), *hashes


def same_tokens(identity: Mapping[str, Any]) -> Path | None:
    """The set with the very tokens that a run was trained on, wherever it lies now.

    Args:
        identity: what a checkpoint says of its data (``training.progress.data_identity``).
    """
    if not identity.get("train_sha256"):
        return None  # an imported model's, or an early version's
    for folder in (Path(str(identity.get("folder", ""))), *look.prepared_folders()):
        with contextlib.suppress(UserError):
            about = tokens.read_manifest(folder)
            found = (about.fingerprint, about.train.sha256, about.val.sha256)
            if found == tuple(identity.get(k) for k in ("tokenizer", "train_sha256", "val_sha256")):
                return folder
    return None


def newest(folder: Path) -> Path:
    """The last prepared of the sets that were asked for as this one was, under the same name."""
    about = tokens.read_manifest(folder)
    alike = [folder]
    for other in look.prepared_folders():
        with contextlib.suppress(UserError):
            found = tokens.read_manifest(other)
            if found.name == about.name and found.raw["request"] == about.raw["request"]:
                alike.append(other)
    return max(alike, key=look.written)
