"""What a proof of a split's bytes says: what was counted, what is lost, where it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

SHOWN: Final = 32  # bytes of either side that a difference shows

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Difference:
    """The first place where the tokens and the source do not agree.

    Attributes:
        reason: what is wrong, as a sentence without an end.
        token: position in the split of the first token concerned; None if it concerns all.
        id: that token; None behind the last one.
        byte: offset in the split's text.
        found: bytes that the tokens stand for from there on.
        source: bytes of the source from there on.
        where: the file, and the byte or the record in it; empty if unknown.
    """

    reason: str
    token: int | None = None
    id: int | None = None
    byte: int | None = None
    found: bytes = b""
    source: bytes = b""
    where: str = ""

    def showing(self, found: str, source: str) -> Difference:
        """The same with the beginnings of these texts."""
        cut = slice(SHOWN // 2)
        return replace(self, found=found[cut].encode(), source=source[cut].encode())


@dataclass
class Lost:
    """Bytes of the source that the tokens do not give back, by cause.

    Attributes:
        changed: bytes whose text the tokenizer changes, as by writing it in lower case.
        dropped: bytes, other than white space, for which there is no token.
        unknown: bytes that became the unknown token.
        white_space: bytes of white space that decoding does not give back.
        broken: bytes that were not UTF-8, which ``prepare`` replaced or left out.
        added: bytes of white space that decoding adds; they are none of the source's.
        example: the beginnings of the first loss: source text, decoded text.
    """

    changed: int = 0
    dropped: int = 0
    unknown: int = 0
    white_space: int = 0
    broken: int = 0
    added: int = 0
    example: tuple[str, str] | None = None

    @property
    def total(self) -> int:
        """Bytes of the source that are not given back."""
        return self.changed + self.dropped + self.unknown + self.white_space + self.broken


@dataclass
class Certificate:
    """What was proved of a split.

    Attributes:
        sources: the files: how many, their bytes, their sha256, the first paths.
        reading: options of ``prepare`` that decide how text is read, where they were given.
        bytes: bytes of the source that the split's tokens stand for: in UTF-8, without a byte-order
            mark, and of a record the text field alone.
        sha256: of the split's text in UTF-8.
        tokens: tokens of the split, end-of-text tokens included.
        tokens_sha256: of the token file.
        end_of_text: end-of-text tokens; they stand for no bytes.
        first_token: bytes of the first token, which no model predicts.
        lost: what decoding does not give back.
        difference: why the proof failed; None if it did not.
    """

    sources: dict[str, Any]
    tokens: int
    reading: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    sha256: str = ""
    tokens_sha256: str = ""
    end_of_text: int = 0
    first_token: int = 0
    lost: Lost = field(default_factory=Lost)
    difference: Difference | None = None

    @property
    def passed(self) -> bool:
        """Whether every token and every byte was accounted for."""
        return self.difference is None

    @property
    def unscored_tokens(self) -> int:
        """Tokens that an evaluation does not predict: the first, which nothing precedes."""
        return min(1, self.tokens)

    def bits_per_byte(self, loss: float, predicted: int) -> float:
        """Bits per byte of the source, over the bytes of the tokens that were predicted.

        Args:
            loss: mean negative log-likelihood in nats per token.
            predicted: tokens that it is the mean of; all of the split but the unscored ones.
        """
        assert predicted == self.tokens - self.unscored_tokens
        size = self.bytes - self.first_token
        return loss * predicted / math.log(2) / size if size > 0 else math.nan
