"""The interface of all tokenizers, and the two simplest: characters and bytes.

A tokenizer is a value: it can be written as JSON, read back (``factory.py``) and compared
(``fingerprint``). A tokenizer that needs a heavy library imports it when it is created. Encoding
never recognises special tokens inside the text: a document that spells out ``<|endoftext|>`` stays
one document.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import checked

FORMAT: Final = "nanogpt-cli tokenizer"
END_OF_TEXT: Final = "<|endoftext|>"
SAME_BYTES: Final = bytes(range(256))

Tokens = npt.NDArray[Any]


class UnknownCharacters(UserError):  # noqa: N818 - the name says what was found
    """The text holds characters that a character vocabulary lacks.

    Attributes:
        lacking: the first of them, and how many others there are, in words.
        positions: offsets of the unknown characters in the text, in characters, ascending.
    """

    def __init__(self, text: str, positions: list[int], vocab_size: int) -> None:
        first, more = text[positions[0]], len({text[i] for i in positions}) - 1
        self.lacking = f"{first!r} (U+{ord(first):04X})"
        if more:
            self.lacking += f" and {more:,} other character{'s' * (more > 1)}"
        super().__init__(
            f"the {vocab_size} characters of this vocabulary do not include {self.lacking}, "
            f"first met at position {positions[0]}",
            "use only characters of the training text, or a byte or BPE tokenizer",
        )
        self.positions = positions


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        kind: the name people type: ``char``, ``byte``, ``gpt2``, ``bpe:4096``, ``hf``, ...
        vocab_size: number of ids; ids are 0 .. vocab_size - 1.
        eot: id of the end-of-text token, None where the vocabulary has none.
        cut_rule: where a long text may be cut without changing its tokens; see ``cuts.py``.
        joins_bytes: whether the text of several ids is what their bytes, joined, spell in UTF-8.
        byte_ids: the bytes of the ids that stand for single bytes (``<0xE6>``) where the vocabulary
            has no token for a character; empty where such bytes are joined like all others.
        ascii_ids: the ids of ASCII characters, padded to 256 for ``bytes.translate``; None if one
            of them is above 255.
    """

    kind: str
    vocab_size: int
    eot: int | None = None
    cut_rule: str = "words"
    joins_bytes: bool = True
    byte_ids: Mapping[int, int] = MappingProxyType({})
    ascii_ids: bytes | None = None

    @property
    def label(self) -> str:
        """Which tokenizer it is, for messages: its kind, or the file it comes from."""
        return f"the tokenizer {self.kind}"

    @abstractmethod
    def encode_array(self, text: str) -> Tokens:
        """Ids of ``text`` as a 1-D array of ``dtype``; the fast way for large texts."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for (one character may be spread over several tokens)."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON value from which ``from_json`` makes an equal tokenizer."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of little-endian uint16 and uint32 that holds every id."""
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. Raises ``UserError`` for half a surrogate pair, which is no text."""
        ids: list[int] = self.encode_array(checked(text, "the text")).tolist()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; broken UTF-8 (a character cut in two) becomes U+FFFD."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", errors="replace")

    def taken_for_bytes(self) -> dict[int, bytes]:
        """Ids whose bytes are others to the ``tokenizers`` library, and so to transformers."""
        return {}

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: equal for equal tokenizers."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return files.sha256_bytes(text.encode())

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "version": 1,
            "kind": self.kind, "vocab_size": self.vocab_size, "eot": self.eot,
        }  # fmt: skip


class CharTokenizer(Tokenizer):
    """One id per character.

    Args:
        characters: the vocabulary by id, each character once.
        eot: append one id for end of text after the characters.
    """

    kind = "char"
    cut_rule = "characters"

    def __init__(self, characters: Iterable[str], *, eot: bool = False) -> None:
        self.characters = list(characters)
        if len(set(self.characters)) != len(self.characters):
            raise UserError("the character vocabulary names a character twice")
        if half := next((c for c in self.characters if "\ud800" <= c <= "\udfff"), None):
            # UTF-8 cannot represent it, so neither a text nor a tokenizer file can hold it.
            raise UserError(f"the character vocabulary holds {half!r}, half of a surrogate pair")
        self.vocab_size = len(self.characters) + eot
        self.eot = len(self.characters) if eot else None
        points = np.array([ord(c) for c in self.characters], dtype=np.int64)
        # The last entry stands for every code point beyond the table, which is unknown as well.
        self._ids = np.full(int(points.max(initial=127)) + 2, -1, dtype=np.int32)
        self._ids[points] = np.arange(len(points))

    @classmethod
    def of_text(cls, text: str, *, eot: bool = False) -> CharTokenizer:
        """The characters of ``text`` in code point order, as in nanoGPT's ``shakespeare_char``."""
        return cls(sorted(set(text)), eot=eot)

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``. Raises ``UnknownCharacters``."""
        ids = self._ids.take(code_points(text), mode="clip")
        if ids.size and int(ids.min()) < 0:
            raise UnknownCharacters(text, np.flatnonzero(ids < 0).tolist(), self.vocab_size)
        return ids.astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``."""
        names = self.characters if self.eot is None else [*self.characters, END_OF_TEXT]
        return "".join(map(names.__getitem__, ids))

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return (END_OF_TEXT if id == self.eot else self.characters[id]).encode()

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``."""
        return {**self._head(), "characters": self.characters}


class ByteTokenizer(Tokenizer):
    """The 256 byte values of the UTF-8 text, optionally with an end-of-text id 256."""

    kind = "byte"
    cut_rule = "characters"
    ascii_ids = SAME_BYTES

    def __init__(self, *, eot: bool = False) -> None:
        self.vocab_size = 256 + eot
        self.eot = 256 if eot else None

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``."""
        ids = list(ids)
        if self.eot in ids:
            return super().decode(ids)
        return bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return END_OF_TEXT.encode() if id == self.eot else bytes([id])

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``."""
        return self._head()


def quoted(data: bytes) -> str:
    """The bytes of one token in quotes; as bytes where they are only a part of a character."""
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)


def code_points(text: str) -> Tokens:
    """The Unicode code points of ``text``: uint8 for ASCII text, else uint32. Shape (len(text),).

    A lone surrogate (possible in a ``str``, never in UTF-8) passes through as its code point.
    """
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
