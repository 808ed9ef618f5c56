"""The text of one split, read again from the files that a data set was made from.

Nothing is taken from the token files: documents are read and divided as ``prepare`` did, and the
files' sha256 are compared with those it recorded.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import again, build, pipeline, prepare, target, tokens
from nanogpt_cli.text.request import STDIN, Request, checked
from nanogpt_cli.text.sources.documents import Chunk, Tally
from nanogpt_cli.text.sources.inputs import FileSource, TextSource
from nanogpt_cli.text.sources.reading import Meter
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokens import TokenData

_COUNTING: Final = "nanogpt-counting"


@dataclass(frozen=True)
class Piece:
    """A stretch of a split's text.

    Attributes:
        text: UTF-8, repaired as ``prepare --errors`` asked for.
        ends: a document ends with it, so that an end-of-text token follows if there is one.
        broken: bytes of the source that were not UTF-8 and are not in ``text``.
        filled: bytes of ``text`` that stand in their place (U+FFFD).
        name: the file it comes from.
        place: byte offset of ``text`` in that file, or the record's line number.
        record: whether ``place`` is a line number.
    """

    text: bytes
    ends: bool
    broken: int
    filled: int
    name: str
    place: int
    record: bool

    @property
    def source_bytes(self) -> int:
        """Bytes of the source that this text was made from."""
        return len(self.text) - self.filled + self.broken


class SourceText:
    """Reads the text of one split again.

    Args:
        data: a prepared set.
        split: ``train`` or ``val``.
        cut: where long documents are cut into pieces.
        report: receives a short line if something has to be fetched.

    Raises:
        UserError: the set does not say where its text is, or the text is gone.
    """

    def __init__(
        self, data: TokenData, split: str, cut: cuts.Cutter, report: Callable[[str], None]
    ) -> None:
        self._data = data
        self._split = split
        self._cut = cut
        self.meter = Meter()
        self._request = _request(data)
        try:
            self.sources = prepare.open_sources(self._request, Tally(), report)
        except UserError as error:
            raise _gone(data, error.message) from error
        self._records = {s.name for s in self.sources if _has_records(s)}

    @property
    def size(self) -> int | None:
        """Bytes of all sources on disk; None when unknown."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def pieces(self) -> Iterator[Piece]:
        """The pieces of the split's text in order, without empty documents.

        The sources are read to their end, whatever the split. Iterate to the end: only then is
        known that they are the ones the set was made from.

        Raises:
            UserError: a source cannot be read, or is not what it was.
        """
        request, rule = self._request, self._data.manifest.split
        hashed = request.val_fraction if rule == "hash" else None
        try:
            chunks = build.read_chunks(request, self.sources, self._cut, self.meter, Tally())
            tasks = pipeline.group(chunks, val_fraction=hashed)
            sided = ((c, s) for t in tasks for c, s in zip(t.chunks, t.sides, strict=True))
            wanted = pipeline.VAL if self._split == "val" else pipeline.TRAIN
            if rule == "hash":
                yield from (self._piece(c, 0, None) for c, side in sided if side == wanted)
            else:
                yield from self._tail((chunk for chunk, _ in sided), wanted)
        except UserError as error:
            files = all(isinstance(source, FileSource) for source in self.sources)
            raise _gone(self._data, error.message, "" if files else error.hint) from error
        self._check_unchanged()

    def _tail(self, chunks: Iterable[Chunk], wanted: int) -> Iterator[Piece]:
        """The pieces before or after the character where ``--split tail`` cut the text."""
        cut = self._data.manifest.train.characters
        end = 0  # in characters, like the cut: how many bytes that is, is what is to be proved
        for chunk, following in itertools.pairwise(itertools.chain(chunks, [None])):
            assert chunk is not None
            whole = self._piece(chunk, 0, None)
            start, end = end, end + _characters(whole.text)
            at = _offset(whole.text, cut - start) if start < cut < end else 0
            # No end-of-text token follows the last document; that of a document which ends at the
            # cut is the training split's.
            ends = chunk.last and following is not None
            if wanted == pipeline.TRAIN and (start < cut or not whole.text) and start <= cut:
                part = self._piece(chunk, 0, at) if at else whole
                yield replace(part, ends=ends and end <= cut)
            if wanted == pipeline.VAL and end > cut:
                yield replace(self._piece(chunk, at, None) if at else whole, ends=ends)

    def _piece(self, chunk: Chunk, start: int, stop: int | None) -> Piece:
        """The part of a chunk's repaired text from byte ``start`` up to byte ``stop``."""
        text, holes = _repaired(chunk.data, self._request.errors)
        stop = len(text) if stop is None else stop
        before = start or -1  # what was left out at the cut itself belongs to the left side
        inside = [hole for hole in holes if before < hole.end <= stop]
        broken, filled = sum(h.broken for h in inside), sum(h.filled for h in inside)
        earlier = sum(h.broken - h.filled for h in holes if h.end <= before)
        record = chunk.name in self._records
        place = chunk.place + (0 if record else start + earlier)
        part = text if stop - start == len(text) else text[start:stop]
        return Piece(part, chunk.last, broken, filled, chunk.name, place, record)

    def _check_unchanged(self) -> None:
        """Compare the sha256 of all that was read with what the manifest says."""
        read = [file for source in self.sources for file in source.read()]
        recorded = self._data.manifest.raw["sources"].get("sha256")
        if recorded in (None, build.sources_sha256(read)):
            return
        old = target.recorded_sources(self._data.folder)
        for file in read:
            if file.path not in old:
                raise _gone(self._data, f"{file.path} was added to the sources")
            if old[file.path]["sha256"] != file.sha256:
                raise _gone(self._data, f"{file.path} was changed since")
        missing = set(old) - {file.path for file in read}
        raise _gone(self._data, f"{min(missing, default='a source')} is gone")


@dataclass(frozen=True)
class _Hole:
    """Bytes that were not UTF-8: where the text goes on after them, and what took their place."""

    end: int
    broken: int
    filled: int


def _repaired(data: bytes, errors: str) -> tuple[bytes, list[_Hole]]:
    """The text that ``prepare`` tokenized, and where it differs from the source's bytes."""
    if errors == "strict" or data.isascii():
        return data, []
    spans: list[tuple[int, int]] = []

    def count(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        spans.append((error.start, error.end))
        return "", error.end

    codecs.register_error(_COUNTING, count)
    data.decode("utf-8", _COUNTING)
    filler = "\ufffd".encode() if errors == "replace" else b""
    parts, holes, size, done = [], [], 0, 0
    for start, stop in spans:
        parts += [data[done:start], filler]
        size, done = size + start - done + len(filler), stop
        holes.append(_Hole(size, stop - start, len(filler)))
    return b"".join([*parts, data[done:]]), holes


def _characters(text: bytes) -> int:
    """How many characters UTF-8 holds: all bytes but those that continue one."""
    if text.isascii():
        return len(text)
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.int8) >= -0x40))


def _offset(text: bytes, characters: int) -> int:
    """The byte where that many characters end."""
    if text.isascii():
        return characters
    begin = np.flatnonzero(np.frombuffer(text, dtype=np.int8) >= -0x40)
    return int(begin[characters])


def _has_records(source: TextSource) -> bool:
    return not isinstance(source, FileSource) or source.holds_records


def _request(data: TokenData) -> Request:
    """What ``prepare`` was asked for.

    Raises:
        UserError: the set was not made from a text that can be read again.
    """
    manifest, raw = data.manifest, data.manifest.raw["request"]
    if manifest.split not in ("tail", "hash"):
        raise UserError(
            f"{data.folder} was made from nanoGPT's token files, so nothing can be proved: they do "
            "not say which text they were made from",
            f"prepare the text itself with --tokenizer {manifest.kind}, and name that set with "
            "--data",
        )
    if not raw.get("inputs"):
        raise UserError(
            f"{data.folder / tokens.MANIFEST} is damaged: request.inputs names no text",
            "prepare it again",
        )
    known = {key: raw[key] for key in raw if key in Request.__dataclass_fields__}
    request = Request(**known | {"inputs": tuple(raw["inputs"])})
    if STDIN in request.inputs:
        raise UserError(
            f"{data.folder} was made from standard input, so nothing can be proved: its text "
            "cannot be read again",
            "save the text to a file, prepare that with the same tokenizer, and name that set with "
            "--data",
        )
    # The tokenizer is that of the set; its file need not be there any more.
    return checked(replace(request, tokenizer="byte"))


def _gone(data: TokenData, what: str, hint: str = "") -> UserError:
    kind = str(data.manifest.raw["request"].get("tokenizer") or data.manifest.kind)
    words = again.prepare_words(data.manifest, kind)
    now = f", or prepare the text as it is now, {shell.hint(*words)}, and train on that"
    return UserError(
        f"the text of {data.folder} cannot be read as it was, so nothing can be proved: {what}",
        hint
        or f"put the files listed in {data.folder / build.SOURCES} back as they were"
        + (now if words else ""),
    )
