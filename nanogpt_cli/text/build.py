"""Creating the files of a data set in an empty folder."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import pipeline, receipt, tokens
from nanogpt_cli.text.request import Request, split_rule
from nanogpt_cli.text.sources.documents import Chunk, Reader, Tally, option
from nanogpt_cli.text.sources.inputs import StandardInput, TextSource
from nanogpt_cli.text.sources.reading import Meter, SourceFile
from nanogpt_cli.text.splits import Counts, SplitWriter, TailWriter
from nanogpt_cli.text.tokenizers import bpe, cuts, factory
from nanogpt_cli.text.tokenizers.charset import CharsetCollector, renumber, renumbered
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens
from nanogpt_cli.version import __version__

SOURCES: Final = "sources.jsonl"
_TRAINING_BYTES: Final = 1 << 27  # more text than this hardly improves a vocabulary
_SETTLING_BYTES: Final = 1 << 23  # the beginning of most texts contains all their characters
_FEWEST: Final = 2  # tokens of a split: one that is read and one that is predicted


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation has come.

    Attributes:
        bytes: bytes that this phase has read from the sources so far, before unpacking.
        total: how many it will read; None when unknown.
        tokens: tokens written so far.
        documents: documents finished so far.
        doing: the phase: "tokenizing", or with ``bpe:SIZE`` before it "reading for the BPE" and
            "merging pairs", which the library does without a word.
    """

    bytes: int
    total: int | None
    tokens: int = 0
    documents: int = 0
    doing: str = "tokenizing"


@dataclass
class Build:
    """One preparation: its inputs, and the counters it keeps."""

    request: Request
    name: str
    sources: list[TextSource]
    folder: Path
    workers: int
    report: Callable[[str], None]
    progress: Callable[[PrepareProgress], None]
    tally: Tally

    def run(self) -> dict[str, Any]:
        """Write every file of the set; returns the manifest's JSON object.

        Raises:
            UserError: the sources hold no text, too little of it, or something unreadable.
        """
        rule = split_rule(self.request, self.sources)
        unread = copy.deepcopy(self.tally)
        tokenizer = self._tokenizer()
        writer, facts = self._written(rule, tokenizer)
        open_rule = self.request.split == "auto" and not self._is_stream()
        if rule == "hash" and open_rule and facts.tokens and self._short_split(writer):
            self.report(
                f"split by their hashes, so few documents ({facts.documents:,}) leave one side "
                "empty: the end of the text is kept for validation instead, as by --split tail"
            )
            rule, self.tally = "tail", unread
            writer, facts = self._written(rule, tokenizer)
        self._check_splits(writer, rule)
        order = None
        if isinstance(tokenizer, CharsetCollector):
            tokenizer, order = tokenizer.finished(writer.counts)
            if order is not None:
                writer.counts = renumbered(writer.counts, order)
        facts.round_trip(tokenizer)
        factory.save(tokenizer, self.folder / tokens.TOKENIZER)
        splits = self._seal(writer, order)
        manifest = self._manifest(tokenizer, rule, splits, writer, facts)
        (self.folder / "documents.tmp").unlink()
        tokens.write_manifest(self.folder, manifest)
        return manifest

    def _written(self, rule: str, tokenizer: Tokenizer) -> tuple[SplitWriter, receipt.Facts]:
        """Both token files, split by the rule, with what was counted on the way."""
        writer = self._writer(rule, tokenizer)
        try:
            facts = self._encode(writer, tokenizer, hashed=rule == "hash")
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return writer, facts

    def _is_stream(self) -> bool:
        """Whether a source can be read only once."""
        return any(isinstance(source, StandardInput) for source in self.sources)

    def _short_split(self, writer: SplitWriter) -> str:
        """The name of a split that is too short to be used; empty if both are long enough."""
        train, val = writer.sides
        wanted = {"train": train, "val": val if self.request.val_fraction else train}
        return next((name for name, counts in wanted.items() if counts.tokens < _FEWEST), "")

    def _tokenizer(self) -> Tokenizer:
        kind, eot = self.request.tokenizer, self.request.eot
        if kind == "char":
            return CharsetCollector(eot=eot)
        size = bpe.trained_size(kind)
        if size is None:
            return factory.get(kind, eot=eot)
        if self._is_stream():
            raise UserError(
                f"{kind} cannot be trained on standard input: the text is read twice",
                "save it to a file, and prepare that",
            )
        self.report(f"training a byte-level BPE of {size:,} tokens on this text")
        trained = bpe.train(size, self._training_texts())
        if trained.vocab_size < size:
            self.report(
                f"the text has only enough pairs to merge for {trained.vocab_size:,} tokens"
            )
        return trained

    def _writer(self, rule: str, tokenizer: Tokenizer) -> SplitWriter:
        if rule == "hash":
            return SplitWriter(self.folder, tokenizer)
        request = self.request
        return TailWriter(self.folder, tokenizer, request.val_fraction, request.errors)

    def _training_texts(self) -> Iterator[str]:
        """The beginning of the text, for the vocabulary; says how much of it has been read."""
        meter, read = Meter(), 0
        total = self._size()
        total = None if total is None else min(total, _TRAINING_BYTES)
        for chunk in self._chunks(None, meter, Tally()):
            if read >= _TRAINING_BYTES:
                break
            read += len(chunk.data)
            yield pipeline.chunk_text(chunk, self.request.errors)
            self.progress(PrepareProgress(meter.bytes, total, doing="reading for the BPE"))
        self.progress(PrepareProgress(meter.bytes, None, doing="merging pairs"))

    def _size(self) -> int | None:
        """Bytes of all sources on the disk; None when unknown."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def _chunks(self, tokenizer: Tokenizer | None, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        cut = cuts.word_cut if tokenizer is None else cuts.cutter(tokenizer)
        return read_chunks(self.request, self.sources, cut, meter, tally)

    def _encode(self, writer: SplitWriter, tokenizer: Tokenizer, *, hashed: bool) -> receipt.Facts:
        total, meter, facts = self._size(), Meter(), receipt.Facts()
        chunks = self._chunks(tokenizer, meter, self.tally)
        if isinstance(tokenizer, CharsetCollector):
            chunks = self._settled(tokenizer, chunks)
        val_fraction = self.request.val_fraction if hashed else None
        tasks = pipeline.group(chunks, val_fraction=val_fraction)
        stream = pipeline.encode_all(
            tasks, tokenizer, errors=self.request.errors, workers=self.workers
        )
        with contextlib.closing(stream):  # stops the threads, also on Ctrl-C and a full disk
            for encoded in stream:
                writer.add(encoded)
                facts.add(encoded)
                self.progress(PrepareProgress(meter.bytes, total, facts.tokens, facts.documents))
        return facts

    def _settled(self, collector: CharsetCollector, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same chunks, after the collector has seen the characters of the first of them."""
        head: deque[Chunk] = deque()
        while sum(len(chunk.data) for chunk in head) < _SETTLING_BYTES:
            if (chunk := next(chunks, None)) is None:
                break
            head.append(chunk)
        collector.settle(pipeline.chunk_text(chunk, self.request.errors) for chunk in head)
        while head:
            yield head.popleft()
        yield from chunks

    def _check_splits(self, writer: SplitWriter, rule: str) -> None:
        train, val = writer.sides
        if train.tokens + val.tokens == 0:
            names = ", ".join(source.name for source in self.sources[:3])
            if first := self.tally.first_skip:
                raise UserError(
                    f"there is no text in {names}: all {self.tally.skipped_records:,} records were "
                    f"skipped; the first: {first.message}",
                    first.hint,
                )
            if empty := self.tally.empty_records:
                raise UserError(
                    f"there is no text in {names}: the field {self.request.text_field!r} of all "
                    f"{empty:,} records is empty",
                    f"name another field with {option('text_field')}",
                )
            raise UserError(f"there is no text in {names}", "the input is empty")
        if split := self._short_split(writer):
            hint = (
                "give more text"
                if rule == "tail"
                else f"use {option('split', 'tail')}, or give more documents"
            )
            raise UserError(
                f"the {split} split has {(train if split == 'train' else val).tokens} of "
                f"{train.tokens + val.tokens:,} tokens; at least {_FEWEST} are needed "
                f"(split {rule}, val_fraction {self.request.val_fraction:g}, "
                f"documents: {train.documents + val.documents})",
                f"{hint}, or change {option('val_fraction')}",
            )

    def _seal(self, writer: SplitWriter, order: Tokens | None) -> dict[str, dict[str, Any]]:
        splits = {}
        for side, split in enumerate(tokens.SPLITS):
            path, counts = self.folder / f"{split}.bin", writer.sides[side]
            if order is None:
                digest = writer.sha256(side)
            else:
                digest = renumber(path, order, self.workers)
            splits[split] = _split_info(counts, digest, path)
        return splits

    def _manifest(
        self,
        tokenizer: Tokenizer,
        rule: str,
        splits: dict[str, dict[str, Any]],
        writer: SplitWriter,
        facts: receipt.Facts,
    ) -> dict[str, Any]:
        read = [file for source in self.sources for file in source.read()]
        return manifest_json(
            name=self.name,
            tokenizer=tokenizer,
            split={"rule": rule, "val_fraction": self.request.val_fraction},
            splits=splits,
            sources=write_sources(self.folder, read),
            request=self.request.to_json(),
            receipt=facts.finished(writer, tokenizer, self.tally),
        )


def read_chunks(
    request: Request, sources: list[TextSource], cut: cuts.Cutter, meter: Meter, tally: Tally
) -> Iterator[Chunk]:
    """The chunks of all documents that ``request`` asks for, in order, cut by ``cut``."""
    reader = Reader(cut, request.errors, request.encoding, request.newlines, request.text_field)
    chunks = itertools.chain.from_iterable(s.chunks(reader, meter, tally) for s in sources)
    return chunks if request.limit is None else _first(chunks, request.limit)


def manifest_json(
    *,
    name: str,
    tokenizer: Tokenizer,
    split: dict[str, Any],
    splits: dict[str, dict[str, Any]],
    sources: dict[str, Any],
    request: dict[str, Any],
    receipt: dict[str, Any],
) -> dict[str, Any]:
    """The manifest's JSON object, its keys in the order that suits a reader."""
    return {
        "format": tokens.FORMAT,
        "version": tokens.VERSION,
        "tool": f"nanogpt-cli {__version__}",
        "name": name,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
            "fingerprint": tokenizer.fingerprint(),
        },
        "dtype": tokenizer.dtype.name,
        "split": split,
        **splits,
        "sources": sources,
        "request": request,
        "receipt": receipt,
    }


def write_sources(folder: Path, read: list[SourceFile]) -> dict[str, Any]:
    """List the files read in ``sources.jsonl``; returns their summary for the manifest."""
    lines = [json.dumps(asdict(file), ensure_ascii=False) for file in read]
    files.write_text(folder / SOURCES, "".join(line + "\n" for line in lines))
    return {
        "files": len(read),
        "bytes": sum(file.size for file in read),
        "sha256": sources_sha256(read),
        "first": [file.path for file in read[:8]],
    }


def sources_sha256(read: list[SourceFile]) -> str:
    """The hash of a single file, or the hash of several files' hashes in order."""
    if len(read) == 1:
        return read[0].sha256
    return hashlib.sha256("".join(file.sha256 for file in read).encode()).hexdigest()


def _split_info(counts: Counts, digest: str, path: Path) -> dict[str, Any]:
    return {**asdict(counts), "sha256": digest, "mtime_ns": path.stat().st_mtime_ns}


def _first(chunks: Iterator[Chunk], limit: int) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        limit -= chunk.last
        if limit <= 0:
            return
