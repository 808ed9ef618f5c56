"""The data receipt: what the user should know about a data set before training on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from nanogpt_cli.printable import storable
from nanogpt_cli.text.pipeline import Encoded
from nanogpt_cli.text.sources.documents import Tally, option
from nanogpt_cli.text.splits import DOCUMENT, SplitWriter
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens, quoted

_SAMPLE_CHARACTERS: Final = 2048
_SAMPLES: Final = 64
_FIRST_SAMPLES: Final = 16
_BUCKET_DOCUMENTS: Final = 1 << 21
_LARGE_VOCABULARY: Final = 4096
_MOST_FREQUENT: Final = 10


@dataclass
class Facts:
    """Counters kept while tokens are written.

    Attributes:
        broken: bytes that were not UTF-8 and were replaced or left out.
        returns: carriage returns.
        longest: tokens, file and place of the longest document.
        samples: texts on which decode(encode(text)) == text is checked.
    """

    tokens: int = 0
    documents: int = 0
    broken: int = 0
    returns: int = 0
    longest: tuple[int, str, int] = (0, "", 0)
    samples: list[str] = field(default_factory=list)
    exact_samples: int = 0
    _tasks: int = 0
    _open_tokens: int = 0
    _open_place: int | None = None

    def add(self, encoded: Encoded) -> None:
        """Count one task."""
        for chunk, length in zip(encoded.task.chunks, encoded.lengths, strict=True):
            if self._open_place is None:
                self._open_place = chunk.place
            self._open_tokens += length
            if chunk.last:
                self.longest = max(self.longest, (self._open_tokens, chunk.name, self._open_place))
                self.documents += 1
                self._open_tokens, self._open_place = 0, None
        self.tokens += sum(map(len, encoded.tokens))
        self.broken += encoded.broken
        self.returns += encoded.returns
        self._sample(encoded)

    def _sample(self, encoded: Encoded) -> None:
        # Tasks 0 to 32, then 34, 36, ... 64, 68, ...: dense at first, then spread over all input.
        step = max(1, 1 << max(0, self._tasks.bit_length() - 5))
        if self._tasks % step == 0 and len(self.samples) < _SAMPLES:
            chunks = encoded.task.chunks
            # A small set is a single task, which may have many documents.
            apart = len(chunks) if self._tasks else -(-len(chunks) // _FIRST_SAMPLES)
            for chunk in chunks[::-apart]:
                text = chunk.data[: 4 * _SAMPLE_CHARACTERS].decode("utf-8", "ignore")
                self.samples.append(text[:_SAMPLE_CHARACTERS])
        self._tasks += 1

    def round_trip(self, tokenizer: Tokenizer) -> None:
        """Check decode(encode(text)) == text on the samples."""
        self.exact_samples = sum(tokenizer.decode(tokenizer.encode(s)) == s for s in self.samples)

    def finished(self, writer: SplitWriter, tokenizer: Tokenizer, tally: Tally) -> dict[str, Any]:
        """The receipt as JSON. ``writer`` is closed, but its spool of documents still exists."""
        train, val = writer.sides
        size = train.bytes + val.bytes
        return {
            "documents": self.documents,
            "bytes": size,
            "characters": train.characters + val.characters,
            "tokens": train.tokens + val.tokens,
            "bytes_per_token": round(size / max(1, train.tokens + val.tokens), 4),
            "unique_tokens": int(np.count_nonzero(writer.counts)),
            "vocab_size": tokenizer.vocab_size,
            "longest_document": _longest(self.longest),
            "most_frequent": most_frequent(writer.counts, tokenizer),
            **compare_documents(_spool(writer), self.documents),
            "round_trip": {"samples": len(self.samples), "exact": self.exact_samples},
            "broken_bytes": self.broken + tally.broken_bytes,
            "carriage_returns": self.returns,
            "forced_cuts": tally.forced_cuts,
            "skipped_records": tally.skipped_records,
            "empty_records": tally.empty_records,
            "chats": tally.chats,
            "skipped_files": tally.skipped_files,
            "first_binary": storable(tally.first_binary.message) if tally.first_binary else None,
            "first_skip": storable(tally.first_skip.message) if tally.first_skip else None,
            "remarks": [
                {"remark": sentence, "files": len(names), "first": names[0]}
                for sentence, names in tally.remarks.items()
            ],
        }


def notes(manifest: dict[str, Any]) -> Iterator[str]:
    """What the user should know before training on this set, a sentence each."""
    receipt, tokenizer = manifest["receipt"], manifest["tokenizer"]
    for found in receipt.get("remarks", ()):
        others = f" and {found['files'] - 1:,} more" if found["files"] > 1 else ""
        yield f"{found['first']}{others}: {found['remark']}"
    trip = receipt.get("round_trip", {"samples": 0, "exact": 0})
    if trip["exact"] < trip["samples"]:
        yield "this tokenizer does not reproduce the text exactly; samples will look different"
    if receipt.get("broken_bytes"):
        yield (
            "bytes that are invalid in the text's encoding, replaced or left out: "
            f"{receipt['broken_bytes']:,}"
        )
    if receipt.get("carriage_returns"):
        yield (
            f"the text holds {receipt['carriage_returns']:,} carriage returns (line ends of "
            f"Windows), which were kept; {option('newlines', 'lf')} makes them plain newlines"
        )
    if receipt.get("forced_cuts"):
        yield (
            f"megabytes without a word boundary were cut, {receipt['forced_cuts']:,} in all; the "
            "tokens at each cut may differ"
        )
    if receipt.get("skipped_records"):
        first = f"; the first: {receipt['first_skip']}" if receipt.get("first_skip") else ""
        yield f"unreadable records left out: {receipt['skipped_records']:,}{first}"
    if receipt.get("empty_records"):
        yield f"records without any text left out: {receipt['empty_records']:,}"
    if receipt.get("chats"):
        yield (
            f"records that are chats: {receipt['chats']:,}; their text is a line `role: content` "
            "for each message"
        )
    if receipt.get("skipped_files"):
        first = f"; the first: {receipt['first_binary']}" if receipt.get("first_binary") else ""
        yield f"binary files left out: {receipt['skipped_files']:,}{first}"
    if manifest["val"]["tokens"] < 2:
        yield (
            f"the val split has {manifest['val']['tokens']} tokens, and train needs at least 2 to "
            "evaluate on"
        )
    if receipt["documents"] > 1 and tokenizer["eot"] is None:
        offer = f"; {option('eot')} adds one" if tokenizer["kind"] in ("char", "byte") else ""
        yield (
            f"the {receipt['documents']:,} documents follow one another without an end-of-text "
            f"token between them{offer}"
        )
    if small := _smaller_vocabulary(receipt):
        yield (
            f"only {receipt['unique_tokens']:,} of the {receipt['vocab_size']:,} tokens of the "
            "vocabulary occur, and a model has an embedding for each of them; "
            f"{option('tokenizer', small)} makes it smaller and faster"
        )
    if receipt.get("leakage", {"share": None})["share"]:
        yield (
            "some validation text is also in train, so its loss will look too good; "
            f"try {option('split', 'hash')}"
        )


def _smaller_vocabulary(receipt: dict[str, Any]) -> str:
    """The tokenizer to advise where most of a large vocabulary never occurs; else empty.

    A token of a trained vocabulary then stands for some 200 bytes of the text, so that it occurs
    dozens of times.
    """
    rows = receipt.get("vocab_size", 0)
    if rows < _LARGE_VOCABULARY or 4 * receipt.get("unique_tokens", rows) >= rows:
        return ""
    size = min(receipt["bytes"] // 200, 2**15)
    return f"bpe:{2 ** (size.bit_length() - 1)}" if size >= 512 else "char"


def _longest(longest: tuple[int, str, int]) -> dict[str, Any]:
    return {"tokens": longest[0], "source": longest[1], "place": longest[2]}


def _spool(writer: SplitWriter) -> Tokens:
    path = writer.folder / "documents.tmp"
    if path.stat().st_size == 0:
        return np.empty(0, dtype=DOCUMENT)
    return np.memmap(path, dtype=DOCUMENT, mode="r")


def most_frequent(counts: Tokens, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The ten most frequent tokens: id, text, share of all tokens, and the text in quotes."""
    total = max(1, int(counts.sum()))
    order = np.argsort(-counts, kind="stable")[:_MOST_FREQUENT]
    return [
        {
            "id": int(i),
            "text": tokenizer.token_bytes(int(i)).decode("utf-8", "replace"),
            "share": round(int(counts[i]) / total, 5),
            "quoted": quoted(tokenizer.token_bytes(int(i))),
        }
        for i in order
        if counts[i]
    ]


def compare_documents(spool: Tokens, documents: int) -> dict[str, Any]:
    """Duplicates and leakage among whole documents, by their 64-bit hashes.

    Each pass compares about two million hashes, so that memory does not grow with the data. Leakage
    is the share of validation documents that also occur verbatim in train; None without any
    validation document.

    Args:
        spool: shape (documents,), fields ``digest`` and ``place`` (0 train, 1 validation).
        documents: how many there are.
    """
    buckets = -(-max(1, documents) // _BUCKET_DOCUMENTS)
    unique = leaked = held = 0
    for bucket in range(buckets):
        part = _bucket(spool, bucket, buckets)
        train = _distinct(part["digest"][part["place"] == 0])
        val = part["digest"][part["place"] == 1]
        held += len(val)
        leaked += int(_stands_in(val, train).sum())
        unique += len(_distinct(part["digest"]))
    return {
        "duplicates": documents - unique,
        "leakage": {
            "val_documents": held,
            "in_train": leaked,
            "share": round(leaked / held, 5) if held else None,
        },
    }


def _distinct(digests: Tokens) -> Tokens:
    """Sorted, each once. ``np.unique`` takes ten times as long."""
    ordered = np.sort(digests)
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _stands_in(digests: Tokens, ordered: Tokens) -> Tokens:
    """Whether each digest is among the ``ordered`` ones."""
    if not len(ordered):
        return np.zeros(len(digests), dtype=bool)
    found: Tokens = ordered.take(np.searchsorted(ordered, digests), mode="clip") == digests
    return found


def _bucket(spool: Tokens, bucket: int, buckets: int) -> Tokens:
    if buckets == 1:
        return spool
    selected = []
    for start in range(0, len(spool), _BUCKET_DOCUMENTS):
        rows = spool[start : start + _BUCKET_DOCUMENTS]
        selected.append(rows[rows["digest"] % np.uint64(buckets) == bucket])
    return np.concatenate(selected)
