"""Decoding token ids as they arrive: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from nanogpt_cli.text.tokenizer import Tokenizer


class TextStream:
    """Turns one sequence's tokens into text that can be shown immediately.

    A character spread over tokens appears with its last byte; text that may be the beginning of a
    stop string is held back until that is decided. ``"".join(push...) + finish()`` is the text of
    all tokens, cut before the first stop string.

    Args:
        tokenizer: gives the bytes of each token.
        stop: strings that end the text; they are not part of it.

    Attributes:
        stopped: a stop string was found; later tokens are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """Add a token; returns the text that is now certain, which may be empty."""
        return self._take(self._decoder.decode(self._tokenizer.token_bytes(id)))

    def finish(self) -> str:
        """The text still held back; an incomplete character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        certain = len(text) - max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``string``."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
