"""Decoding all tokens of a split and comparing the bytes with the source's, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from nanogpt_cli.text.proof.certificate import SHOWN, Certificate, Difference, Progress
from nanogpt_cli.text.proof.source_stream import SourceStream
from nanogpt_cli.text.tokenizers.token_table import TokenTable
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens

_BLOCK: Final = 1 << 20  # tokens decoded at once


@dataclass(frozen=True)
class _Block:
    """Some tokens of a split and the bytes they stand for.

    Attributes:
        first: position of the first token in the split.
        ids: the tokens, shape (n,).
        begin: offset of their bytes in the split's text.
        found: their bytes, uint8.
        ends: where each token ends in ``found``, shape (n,).
    """

    first: int
    ids: Tokens
    begin: int
    found: Tokens
    ends: Tokens

    def difference(self, reason: str, byte: int, source: bytes, where: str) -> Difference:
        """The difference at ``byte`` of ``found``; ``source`` is the block's own text."""
        token = int(np.searchsorted(self.ends, byte, side="right"))
        id = int(self.ids[token]) if token < len(self.ids) else None
        start = int(self.ends[token - 1]) if token else 0
        shown = slice(start, start + SHOWN)
        found = self.found[shown].tobytes()
        at = self.begin + byte
        return Difference(reason, self.first + token, id, at, found, source[shown], where)


def compare(
    tokenizer: Tokenizer, ids: Tokens, text: SourceStream, made: Certificate, progress: Progress
) -> Difference | None:
    """The first place where ``ids`` do not decode to the text; None if there is none.

    Args:
        tokenizer: one that restores every text.
        ids: all tokens of a split.
        text: the split's text, of which nothing has been read.
        made: receives the number of end-of-text tokens and the bytes of the first token.
        progress: receives the tokens that are done, and all of them.
    """
    table, eot = TokenTable.of(tokenizer), tokenizer.eot
    made.first_token = len(table.piece(int(ids[0]))) if len(ids) else 0
    marks: list[Tokens] = []
    for block in _blocks(table, ids):
        source = text.take(len(block.found))
        if wrong := _differing(block, source, text):
            return wrong
        if len(block.ids) < min(_BLOCK, len(ids) - block.first):
            at = block.first + len(block.ids)
            reason = f"the vocabulary has no token {ids[at]}"
            return Difference(reason, at, int(ids[at]), text.position, b"", text.take(SHOWN))
        if eot is not None:
            marks.append(block.begin + block.ends[block.ids == eot])
        progress(block.first + len(block.ids), len(ids))
    made.end_of_text = sum(map(len, marks))
    at, rest = text.position, text.take(SHOWN)
    if rest:
        reason = "the tokens end before the source does"
        return Difference(reason, len(ids), None, at, b"", rest, text.where(at))
    if eot is None:
        return None
    return _misplaced(ids, eot, np.concatenate([np.empty(0, np.int64), *marks]), text)


def _blocks(table: TokenTable, ids: Tokens) -> Iterator[_Block]:
    """The tokens in blocks; a block ends early before a token that the vocabulary lacks."""
    begin = 0
    for first in range(0, len(ids), _BLOCK):
        part = np.asarray(ids[first : first + _BLOCK])
        part = part[: table.first_unknown(part)]
        found, ends = table.decode(part)
        yield _Block(first, part, begin, found, ends)
        begin += len(found)


def _differing(block: _Block, source: bytes, text: SourceStream) -> Difference | None:
    found, wanted = block.found, np.frombuffer(source, dtype=np.uint8)
    if np.array_equal(found, wanted):
        return None
    short = min(len(found), len(wanted))
    unequal = np.flatnonzero(found[:short] != wanted[:short])
    if len(unequal):
        at, reason = int(unequal[0]), "the tokens stand for other bytes than the source's"
    else:
        at, reason = short, "the source ends before the tokens do"
    return block.difference(reason, at, source, text.where(block.begin + at))


def _misplaced(ids: Tokens, eot: int, marks: Tokens, text: SourceStream) -> Difference | None:
    """An end-of-text token where no document ends, or a document's end without one."""
    ends = np.frombuffer(text.ends, dtype=np.int64) if text.ends else np.empty(0, np.int64)
    if np.array_equal(marks, ends):
        return None
    short = min(len(marks), len(ends))
    unequal = np.flatnonzero(marks[:short] != ends[:short])
    k = int(unequal[0]) if len(unequal) else short
    if k < len(marks) and (k >= len(ends) or marks[k] < ends[k]):
        reason, byte = "an end-of-text token stands where no document ends", int(marks[k])
    else:
        reason, byte = "a document ends without an end-of-text token", int(ends[k])
    places = np.flatnonzero(ids == eot)  # at most one more per document than there are
    token = int(places[k]) if k < len(places) else len(ids)
    return Difference(reason, token, eot, byte, b"", b"")
