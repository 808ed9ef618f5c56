"""The encodings of the tiktoken library, by name."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers.gpt2_bpe import load_gpt2_encoding
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    import tiktoken

KINDS: Final = (
    "gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony",
)  # fmt: skip
_COPY_PAYS: Final = 1 << 22  # characters; a copy costs what encoding about a megabyte does

_LONGEST_SPACES: Final = 100_000  # any length is exact; the engine's limit is ten times this
_NEWLINES: Final = "\n\r"
# White space as Unicode and Rust define it; Python's has four control characters more.
_BLANKS: Final = "\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class TiktokenTokenizer(Tokenizer):
    """An encoding of the tiktoken library; ``gpt2`` works without a network once cached."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.encoding = _encoding(kind)
        self.vocab_size = self.encoding.n_vocab
        self.eot = self.encoding.eot_token
        self._own = threading.local()

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``. Runs without the interpreter lock, so threads scale."""
        encoding = self._of_this_thread(len(text))
        try:
            # With no special token allowed this equals encode_ordinary, without a Python list.
            return encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)
        except ValueError as error:
            spaces = long_spaces(text, encoding._pat_str)
            if not spaces:
                raise UserError(
                    f"the tokenizer {self.kind} cannot encode this text: {error}",
                    "use another one: --tokenizer byte encodes any text",
                ) from error
        return encode_around(text, encoding, spaces).astype(self.dtype)

    def _of_this_thread(self, size: int) -> tiktoken.Encoding:
        """The encoding, or this thread's own copy once it has encoded enough to pay for one.

        A compiled pattern keeps fast scratch space for one thread only; others take a lock for
        every word, which costs about a quarter of the speed (measured: 4.3 s instead of 3.3 s of
        processor time for 23 MB).
        """
        import tiktoken

        own = self._own
        own.seen = getattr(own, "seen", 0) + size
        if threading.current_thread() is threading.main_thread() or own.seen < _COPY_PAYS:
            return self.encoding
        if not hasattr(own, "encoding"):
            shared = self.encoding
            own.encoding = tiktoken.Encoding(
                shared.name,
                pat_str=shared._pat_str,
                mergeable_ranks=shared._mergeable_ranks,
                special_tokens=shared._special_tokens,
            )
        found: tiktoken.Encoding = own.encoding
        return found

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return self.encoding.decode_single_token_bytes(id)

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``. The name is enough: tiktoken pins the vocabulary's hash."""
        return self._head()


def _encoding(kind: str) -> tiktoken.Encoding:
    if kind == "gpt2":
        return load_gpt2_encoding()
    import tiktoken

    try:
        return tiktoken.get_encoding(kind)
    except Exception as error:  # the library raises whatever its HTTP client does
        raise UserError(
            f"cannot fetch the vocabulary of {kind!r}: {type(error).__name__}",
            "tiktoken fetches it once from its server; without a network set TIKTOKEN_CACHE_DIR "
            "to a cache filled elsewhere, or use --tokenizer gpt2",
        ) from error


def long_spaces(text: str, pattern: str) -> list[tuple[int, int]]:
    """Where white space in ``text`` is a single word of more than 100,000 characters.

    All of tiktoken's patterns match white space before a word, except its last character, by
    ``\\s+(?!\\S)``. The engine stores a backtracking position for each character and fails after a
    million; no other part of the patterns does.

    Args:
        text: any text.
        pattern: of a tiktoken encoding. cl100k's and o200k's end a word at newlines.

    Returns:
        the start and end of each such word.
    """
    ends_at_newlines = r"\s*[\r\n]" in pattern
    inside = _BLANKS if ends_at_newlines else _BLANKS + _NEWLINES
    found = []
    for match in re.finditer(f"[{inside}]{{{_LONGEST_SPACES},}}+", text):
        start, end = match.span()
        if end < len(text):
            if text[end] in _NEWLINES:
                continue  # another part of the pattern matches this word, newlines included
            end -= 1  # the last character belongs to the next word
        elif r"\s++$" in pattern:
            continue  # this part of the pattern, for the end of a text, has no limit
        found.append((start, end))
    return found


def encode_around(text: str, encoding: tiktoken.Encoding, words: list[tuple[int, int]]) -> Tokens:
    """The ids of ``text``, uint32 of shape (tokens,); ``words`` are encoded without the pattern."""
    parts, done = [], 0
    for start, end in words:
        parts.append(encoding.encode_to_numpy(text[done:start], disallowed_special=()))
        word = text[start:end].encode("utf-8")
        parts.append(np.array(encoding._encode_single_piece(word), dtype=np.uint32))
        done = end
    parts.append(encoding.encode_to_numpy(text[done:], disallowed_special=()))
    return np.concatenate(parts)
