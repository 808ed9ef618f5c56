"""Counting what a tokenizer that changes text loses of a split's source, byte by byte.

A vocabulary of lower-case words, or one that forgets the white space between words, cannot give the
source back. Bits per byte are then still bits per byte of the source, if the tokens are exactly the
encoding of these bytes. So the source is encoded again, and the ids must be those of the file. Each
token has its place in the source; the decoded text is laid beside it, and what differs is counted.
Only white space and what the normalizer changes may differ; a decoder that loses more is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from nanogpt_cli.text.proof.certificate import SHOWN, Certificate, Difference, Progress
from nanogpt_cli.text.proof.source_stream import SourceStream
from nanogpt_cli.text.tokenizers import cuts, tokenizer_library
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.tokenizers.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizers.tokenizer import Tokens

if TYPE_CHECKING:
    import tokenizers

_BLANKS: Final = re.compile(r"[\s\u2581]+")  # U+2581 stands for a space inside vocabularies


def restores(tokenizer: HuggingFaceTokenizer) -> bool:
    """Whether the file promises that decoding gives every text back: a plain byte-level BPE."""
    value = tokenizer.to_json()["huggingface"]
    model, added = value["model"], value.get("added_tokens") or []
    steps = list(_steps(value.get("pre_tokenizer") or {}))
    bytewise = [step for step in steps if step["type"] == "ByteLevel"]
    keeping = all(
        not step.get("add_prefix_space", True) if step in bytewise
        else step["type"] in ("Split", "Digits") and step.get("behavior") != "Removed"
        for step in steps
    )  # fmt: skip
    matched = [token for token in added if not token.get("special")]  # these stand for text
    ends = tokenizer.eot is None or any(
        token["id"] == tokenizer.eot and token.get("special") for token in added
    )
    return (
        not value.get("normalizer")
        and tokenizer.joins_bytes
        and bool(bytewise) and keeping and ends
        and not any(token.get("lstrip") or token.get("rstrip") for token in matched)
        and isinstance(model["vocab"], dict)
        and all(character in model["vocab"] for character in byte_characters())
    )  # fmt: skip


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part.get("type") == "Sequence":
        for member in part["pretokenizers"]:
            yield from _steps(member)
    elif part:
        yield part


def account(
    tokenizer: HuggingFaceTokenizer,
    ids: Tokens,
    text: SourceStream,
    made: Certificate,
    progress: Progress,
) -> Difference | None:
    """The first place where ``ids`` are not the encoding of the text; None if there is none.

    Args:
        tokenizer: the set's.
        ids: all tokens of a split.
        text: the split's text, of which nothing has been read, in the pieces that were encoded.
        made: receives end-of-text tokens, losses, and the bytes of the first token.
        progress: receives the tokens that are done, and all of them.
    """
    work = _Account(tokenizer, ids, text, made)
    while (piece := text.read()) is not None:
        work.pending += piece.text.decode("utf-8", "replace")
        wrong = work.match()
        # Where nothing separates documents, two of them may have been encoded as one text.
        more = not (piece.ends and tokenizer.eot is not None) and len(work.pending) < cuts.LIMIT
        if wrong and not more:
            return wrong
        if not wrong and piece.ends and (wrong := work.end()):
            return wrong
        progress(work.token, len(ids))
    if work.pending:
        return work.match()
    if work.token < len(ids):
        id = int(ids[work.token])
        return Difference("the source ends before the tokens do", work.token, id, text.size)
    return None


class _Group(NamedTuple):
    """Neighbouring tokens that share characters of the text, and these characters' place."""

    first: int
    ids: list[int]
    start: int
    stop: int


class _Account:
    """How far the tokens of a split have been found in its text.

    Attributes:
        token: position of the next token.
        byte: offset in the split's text of ``pending``.
        pending: text that was read and not yet found.
    """

    def __init__(
        self, tokenizer: HuggingFaceTokenizer, ids: Tokens, text: SourceStream, made: Certificate
    ) -> None:
        self.token = self.byte = 0
        self.pending = ""
        self._tokenizer = tokenizer
        self._library = tokenizer.backend
        self._ids = ids
        self._text = text
        self._made = made
        model = tokenizer.to_json()["huggingface"]["model"]
        name, id = model.get("unk_token"), model.get("unk_id")
        self._unknown = self._library.token_to_id(name) if isinstance(name, str) else id
        self._normalizer = self._library.normalizer  # each access makes another object
        self._added = set(self._library.get_added_tokens_decoder())

    def match(self) -> Difference | None:
        """Find tokens for all of ``pending``; what has none stays there."""
        while self.pending:
            encoded = self._encoded(self.pending)
            theirs = self._ids[self.token : self.token + len(encoded.ids)]
            mine = np.array(encoded.ids, dtype=np.int64)
            unequal = np.flatnonzero(mine[: len(theirs)] != theirs)
            count = int(unequal[0]) if len(unequal) else len(theirs)
            stop = len(self.pending)
            if count < len(mine):
                stop = encoded.offsets[count][0]
                if not self._was_cut(encoded, count):
                    return self._other_token(count, stop)
            if wrong := self._compare(encoded, count, self.pending[:stop]):
                return wrong
            self.token += count
            self.byte += len(self.pending[:stop].encode())
            self.pending = self.pending[stop:]
        self._text.forget()
        return None

    def end(self) -> Difference | None:
        """Take the end-of-text token behind a document."""
        eot = self._tokenizer.eot
        if eot is None:
            return None
        if self.token < len(self._ids) and self._ids[self.token] == eot:
            self.token += 1
            self._made.end_of_text += 1
            return None
        return self._difference("a document ends without an end-of-text token", 0, 0)

    def _encoded(self, text: str) -> tokenizers.Encoding:
        with tokenizer_library.calling("the tokenizer cannot encode the source"):
            return self._library.encode(text, add_special_tokens=False)

    def _was_cut(self, encoded: tokenizers.Encoding, count: int) -> bool:
        """Whether the text was cut before token ``count`` when it was encoded."""
        at = self.token + count
        if not count or at >= len(self._ids):
            return False
        stop = encoded.offsets[count][0]
        if stop < encoded.offsets[count - 1][1] or not stop:
            return False
        return bool(self._encoded(self.pending[stop:]).ids[0] == self._ids[at])

    def _compare(self, encoded: tokenizers.Encoding, count: int, text: str) -> Difference | None:
        """Lay the decoded text of ``count`` tokens beside their source; counts what is lost."""
        if self.token == 0 and count:
            self._made.first_token = len(text[: encoded.offsets[0][1]].encode())
        decoded = self._tokenizer.decode(encoded.ids[:count])
        if decoded == text:
            return None
        done = at = 0  # in the source, in the decoded text
        for group in _groups(encoded, count):
            body = text[group.start : group.stop]
            stop = group.start + len(body.rstrip().rstrip("\u2581").rstrip())
            body = _solid(body)
            if not body:
                continue
            cause, expected = self._expected(group.ids, body, decoded, at)
            after = _after(decoded, at, expected)
            if after is None:
                shown = self._difference(_DECODER, group.first, group.start)
                return shown.showing(decoded[at:].lstrip(), text[group.start :])
            self._count(text[done : group.start], text[done:stop], decoded[at:after], cause, body)
            done, at = stop, after
        if _solid(decoded[at:]):
            return self._difference(_DECODER, count, len(text)).showing(decoded[at:], text[done:])
        self._count(text[done:], text[done:], decoded[at:], "", "")
        return None

    def _expected(self, ids: list[int], body: str, decoded: str, at: int) -> tuple[str, str]:
        """Why these tokens may decode to other characters than their source's, and to which."""
        unknown = self._unknown is not None and self._unknown in ids
        if not unknown and _after(decoded, at, body) is not None:
            return "", body
        own = _solid("".join(self._library.id_to_token(id) or "" for id in ids))
        if unknown:
            return "unknown", own
        if self._normalizer is not None:
            changed = _solid(self._normalizer.normalize_str(body))
            if _after(decoded, at, changed) is not None:
                return "changed", changed
        # An added token may be found in another spelling than its own.
        return ("changed", own) if len(ids) == 1 and ids[0] in self._added else ("", body)

    def _count(self, gap: str, source: str, decoded: str, cause: str, body: str) -> None:
        """Count the loss between a stretch of the source and its decoded text."""
        if source == decoded:
            return
        lost = self._made.lost
        if cause:
            setattr(lost, cause, getattr(lost, cause) + len(body.encode()))
        lost.dropped += len(_solid(gap).encode())
        mine, theirs = _blanks(source), _blanks(decoded)
        same = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
            min(len(mine), len(theirs)),
        )
        gone = mine[same:]
        lost.changed += len("\u2581".encode()) * gone.count("\u2581")
        lost.white_space += len(gone.replace("\u2581", "").encode())
        lost.added += len(theirs[same:].encode())
        if lost.example is None and lost.total:
            lost.example = (source[:SHOWN], decoded[:SHOWN])

    def _other_token(self, count: int, stop: int) -> Difference:
        at = self.token + count
        if at >= len(self._ids):
            return self._difference("the tokens end before the source does", count, stop)
        reason = "encoding the source again gives another token"
        return self._difference(reason, count, stop).showing(
            self._tokenizer.decode([int(self._ids[at])]), self.pending[stop:]
        )

    def _difference(self, reason: str, count: int, stop: int) -> Difference:
        """A difference at a token after the ones found, and at a character of ``pending``."""
        at, byte = self.token + count, self.byte + len(self.pending[:stop].encode())
        id = int(self._ids[at]) if at < len(self._ids) else None
        return Difference(reason, at, id, byte, where=self._text.where(byte))


_DECODER: Final = "the tokenizer's decoder does not give the text back"


def _groups(encoded: tokenizers.Encoding, count: int) -> Iterator[_Group]:
    """The first ``count`` tokens, those together whose places overlap."""
    group: _Group | None = None
    offsets, ids = encoded.offsets, encoded.ids
    for i in range(count):
        start, stop = offsets[i]
        if group is not None and start < group.stop:
            group = group._replace(ids=[*group.ids, ids[i]], stop=max(stop, group.stop))
            continue
        if group is not None:
            yield group
        group = _Group(i, [ids[i]], start, stop)
    if group is not None:
        yield group


def _solid(text: str) -> str:
    """The text without white space."""
    return _BLANKS.sub("", text)


def _blanks(text: str) -> str:
    """The white space of a text."""
    return "".join(_BLANKS.findall(text))


def _after(text: str, at: int, solid: str) -> int | None:
    """Where ``text`` goes on after ``solid``, read from ``at`` past any white space; else None."""
    start = at + 1 if text.startswith(" ", at) else at
    if text.startswith(solid, start):  # nearly always
        return start + len(solid)
    for character in solid:
        if (blank := _BLANKS.match(text, at)) is not None:
            at = blank.end()
        if at >= len(text) or text[at] != character:
            return None
        at += 1
    return at
