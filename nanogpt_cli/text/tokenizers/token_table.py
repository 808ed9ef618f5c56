"""The bytes of every token of a vocabulary in one array, to decode large files quickly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens

_NONE = -1  # length of an id that stands for nothing: a gap in the vocabulary


@dataclass(frozen=True)
class TokenTable:
    """Token byte strings by id.

    Attributes:
        flat: the byte strings one after the other, uint8, shape (bytes of all tokens,).
        starts: where each one begins in ``flat``, int64, shape (ids,).
        lengths: the number of its bytes; -1 for an id without a token. int64, shape (ids,).
    """

    flat: Tokens
    starts: Tokens
    lengths: Tokens

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenTable:
        """The table of ``tokenizer.token_bytes``; end of text stands for no bytes."""
        pieces = [_piece(tokenizer, id) for id in range(tokenizer.vocab_size)]
        lengths = np.array([_NONE if p is None else len(p) for p in pieces], dtype=np.int64)
        sizes = np.maximum(lengths, 0)
        flat = np.frombuffer(b"".join(piece or b"" for piece in pieces), dtype=np.uint8)
        return cls(flat, np.cumsum(sizes) - sizes, lengths)

    def first_unknown(self, ids: Tokens) -> int | None:
        """The index of the first of ``ids`` that has no token; None if all have one."""
        outside = ids >= len(self.lengths)
        if outside.any():
            return int(outside.argmax())
        gaps = self.lengths[ids] < 0
        return int(gaps.argmax()) if gaps.any() else None

    def piece(self, id: int) -> bytes:
        """The bytes of one token; none for an id without a token."""
        if not 0 <= id < len(self.lengths):
            return b""
        start = self.starts[id]
        return self.flat[start : start + max(0, self.lengths[id])].tobytes()

    def decode(self, ids: Tokens) -> tuple[Tokens, Tokens]:
        """The bytes of known ``ids``, uint8, and where each token ends in them, shape (ids,)."""
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths)
        starts = self.starts[ids]
        if len(ids) and lengths.min() == lengths.max() == 1:  # byte tokens, and ASCII characters
            return self.flat[starts], ends
        total = int(ends[-1]) if len(ids) else 0
        index = np.arange(total)
        index += np.repeat(starts - (ends - lengths), lengths)
        return self.flat[index], ends


def _piece(tokenizer: Tokenizer, id: int) -> bytes | None:
    if id == tokenizer.eot:
        return b""
    try:
        return tokenizer.token_bytes(id)
    except KeyError:
        return None
