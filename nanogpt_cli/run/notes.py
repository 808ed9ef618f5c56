"""What its user says of a run: a note, tags, and how it is listed; kept in the run's folder.

The trainer never reads or writes ``notes.json``. Somebody else may have written it: a value of
another type counts as none.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import RunFolder

LARGEST: Final = 1 << 16  # bytes of the file
LONGEST_NOTE: Final = 2000  # characters
MOST_TAGS: Final = 16
COLORS: Final = 7
_TAG: Final = re.compile(r"[\w.][\w.-]{0,31}")
_OURS: Final = ("note", "tags", "pinned", "hidden", "color")


@dataclass(frozen=True)
class Notes:
    """A note, tags, and how the run is listed.

    Attributes:
        note: one line of text; empty if there is none.
        tags: distinct words, in the order in which they were given.
        pinned: whether the run is listed before the others.
        hidden: whether it is left out of the list.
        color: number of the colour that was chosen for it, from 0; ``None``: its place decides.
        problem: why the file cannot be read; empty if it can or there is none.
    """

    note: str = ""
    tags: tuple[str, ...] = ()
    pinned: bool = False
    hidden: bool = False
    color: int | None = None
    problem: str = ""
    others: dict[str, Any] = field(default_factory=dict)  # keys of other versions, which are kept


def read(run: RunFolder) -> Notes:
    """The notes of a run; none if there is no file, or one that cannot be read."""
    try:
        values = foreign_files.read_object(run.notes, LARGEST)
    except foreign_files.MissingFileError:
        return Notes()
    except UserError as error:
        return Notes(problem=error.message)
    note, tags, color = values.get("note"), values.get("tags"), values.get("color")
    known = isinstance(color, int) and not isinstance(color, bool) and 0 <= color < COLORS
    return Notes(
        note=" ".join(note.split())[:LONGEST_NOTE] if isinstance(note, str) else "",
        tags=_sound_tags(tags) if isinstance(tags, list) else (),
        pinned=values.get("pinned") is True,
        hidden=values.get("hidden") is True,
        color=color if known else None,
        others={key: value for key, value in values.items() if key not in _OURS},
    )


def _sound_tags(tags: list[Any]) -> tuple[str, ...]:
    found = (tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag))
    return tuple(dict.fromkeys(found))[:MOST_TAGS]


def change(run: RunFolder, **changes: Any) -> Notes:
    """Write some fields of a run's notes; returns all of them.

    Raises:
        UserError: it is no run, a field cannot hold what is asked for, the file that is there
            cannot be read, or the operating system refuses.
    """
    if not run.is_run():  # writing would make a folder where a run was removed
        raise UserError(f"{run.path} holds no run any more", "list runs: `nanogpt runs`")
    before = read(run)
    if before.problem:
        raise UserError(before.problem, "move that file away: notes and tags are stored there")
    after = replace(before, **changes)
    after = replace(after, note=checked_note(after.note))
    if after == before:
        return after
    values: dict[str, Any] = {"note": after.note, "tags": list(after.tags)}
    values |= {"pinned": after.pinned, "hidden": after.hidden, "color": after.color}
    with files.readable_os_errors("write the notes", run.notes):
        if after == Notes():
            with contextlib.suppress(FileNotFoundError):
                run.notes.unlink()
        else:
            files.write_json(run.notes, values | after.others)
    return after


def checked_note(text: str) -> str:
    """The note on one line.

    Raises:
        UserError: it is too long, or holds what UTF-8 cannot.
    """
    text = " ".join(text.split())
    if len(text) > LONGEST_NOTE:
        raise UserError(
            f"the note has {len(text):,} characters, at most {LONGEST_NOTE:,} are possible",
            "shorten it, or keep the text in a file of its own",
        )
    if not _encodes(text):
        raise UserError(
            "the note holds half a surrogate pair, which is not a character", "retype it"
        )
    return text


def changed_tags(
    tags: Iterable[str], add: Iterable[str] = (), remove: Iterable[str] = ()
) -> tuple[str, ...]:
    """The tags after some were added and others removed.

    Raises:
        UserError: a word cannot be a tag, one to remove is not there, or there would be too many.
    """
    found = list(tags)
    for tag in remove:
        if tag not in found:
            there = f"its tags: {', '.join(found)}" if found else "it has none"
            raise UserError(f"no tag {tag!r:.80} to remove", there)
        found.remove(tag)
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise UserError(
                f"{tag!r:.80} cannot be a tag",
                "a tag has up to 32 letters, digits, dots, dashes and underscores, no dash first",
            )
        if tag not in found:
            found.append(tag)
    if len(found) > MOST_TAGS:
        raise UserError(f"{len(found)} tags are too many, {MOST_TAGS} are possible", "remove some")
    return tuple(found)


def edited_tags(tags: Iterable[str], text: str) -> tuple[str, ...]:
    """The tags after an edit such as ``baseline +gpu -try``; a word without a sign is added.

    Raises:
        UserError: as ``changed_tags``.
    """
    words = text.replace(",", " ").split()
    gone = [word[1:] for word in words if word.startswith("-")]
    return changed_tags(
        tags, [word.removeprefix("+") for word in words if not word.startswith("-")], gone
    )


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
