"""Proving the bytes of a split for ``eval --certify`` and ``train --certify``, and showing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.text.proof.certificate import Certificate, Difference, Lost
    from nanogpt_cli.text.tokens import TokenData


def prove(data: TokenData, split: str, without: list[object]) -> Certificate:
    """Compare a split with its source, with a progress bar; see ``text.proof.certify``.

    Args:
        data: the set.
        split: ``train`` or ``val``.
        without: the words of the same command without the proof, for the hint.

    Raises:
        UserError: the source is gone or was changed.
    """
    from nanogpt_cli.text.proof import certify

    console.say(f"comparing the {split} split of {data.folder} with its source")
    try:
        with console.progress_bar("proving") as progress:
            return certify.certify(
                data, split, report=console.say, progress=progress or (lambda _done, _total: None)
            )
    except UserError as error:
        hint = f"{error.hint}; without the proof: {shell.hint(*without)}"
        raise UserError(error.message, hint.removeprefix("; ")) from error


def demand(data: TokenData, without: list[object]) -> Certificate:
    """The proof of the validation split; one that fails is shown and ends the command.

    Args:
        data: the set.
        without: as of ``prove``.
    """
    import typer

    made = prove(data, "val", without)
    if not made.passed:
        for line in lines(made):
            console.say(line)
        raise typer.Exit(1)
    return made


def facts(made: Certificate) -> dict[str, Any]:
    """The certificate as JSON."""
    found = made.difference
    return {
        "passed": made.passed,
        "sources": made.sources,
        "reading": made.reading,
        "bytes": made.bytes,
        "sha256": made.sha256,
        "tokens": made.tokens,
        "tokens_sha256": made.tokens_sha256,
        "end_of_text": made.end_of_text,
        "unscored_tokens": made.unscored_tokens,
        "unscored_bytes": made.first_token,
        "lost": asdict(made.lost) | {"total": made.lost.total},
        "difference": found
        and asdict(found) | {"found": _text(found.found), "source": _text(found.source)},
    }


def lines(made: Certificate) -> Iterator[str]:
    """The certificate for people."""
    for name, text in _rows(made):
        yield f"{name:14} {text}".rstrip()


def _rows(made: Certificate) -> Iterator[tuple[str, str]]:
    if made.difference is not None:
        yield from _failed(made.difference)
        return
    if made.lost.total or made.lost.added:
        yield "certified", "these are the source's tokens, but they do not give all its bytes back;"
        yield "", "bits_per_byte is per byte of the source"
    else:
        yield "certified", "every token decodes to the source's bytes, and none is left over"
    files, first = made.sources.get("files", 0), made.sources.get("first") or []
    if files:
        more = f" and {files - 1:,} more" if files > 1 else ""
        yield "source", f"{first[0]}{more}, {_count(made.sources.get('bytes', 0), 'byte')}"
        yield "source_sha256", str(made.sources.get("sha256", "not recorded"))
    else:
        yield "source", "not read to its end, so without a sha256"
    if made.reading:
        given = (f"{name} {value}" for name, value in made.reading.items())
        yield "read_with", ", ".join(given)
    yield "text", f"{_count(made.bytes, 'byte')} of it, as {_count(made.tokens, 'token')}"
    yield "text_sha256", made.sha256
    yield "tokens_sha256", made.tokens_sha256
    if made.end_of_text:
        yield "end_of_text", f"{_count(made.end_of_text, 'token')}, which stand for no bytes"
    first = _count(made.first_token, "byte")
    yield "unscored", f"the first token, {first}: nothing comes before it"
    yield from _losses(made.lost, made.bytes)


def _losses(lost: Lost, size: int) -> Iterator[tuple[str, str]]:
    if not lost.total and not lost.added:
        yield "lost", "nothing"
        return
    causes = {
        "changed": lost.changed,
        "without a token": lost.dropped,
        "unknown": lost.unknown,
        "white space": lost.white_space,
        "not UTF-8": lost.broken,
    }
    said = ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count)
    yield (
        "lost",
        f"{_count(lost.total, 'byte')} ({lost.total / max(1, size):.1%})" + (said and f": {said}"),
    )
    if lost.added:
        yield "added", f"{_count(lost.added, 'byte')} of white space by decoding"
    if lost.example:
        yield "for example", f"{lost.example[0]!r} decodes to {lost.example[1]!r}"


def _failed(found: Difference) -> Iterator[tuple[str, str]]:
    yield "certified", f"no: {found.reason}"
    if found.token is not None:
        id = "" if found.id is None else f" (id {found.id})"
        yield "first at", f"token {found.token:,}{id}, byte {found.byte or 0:,} of the split"
    if found.where:
        yield "in", found.where
    if found.found or found.source:
        yield "tokens say", repr(_text(found.found))
        yield "source says", repr(_text(found.source))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _text(data: bytes) -> str:
    """Bytes as text; those that are no character as ``\\xe9``."""
    return data.decode("utf-8", "backslashreplace")
