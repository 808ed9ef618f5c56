"""Decoding token ids as they arrive: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Final

from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer

_BROKEN: Final = "\ufffd"
# A window of more ids than the first number is shortened to about the second.
_LONGEST_WINDOW: Final = 32
_KEPT: Final = 8


class TextStream:
    """Turns one sequence's tokens into text that can be shown immediately.

    A character spread over tokens appears with its last byte; text that may be the beginning of a
    stop string is held back until that is decided. ``"".join(push...) + finish()`` is the text of
    all tokens, cut before the first stop string.

    Args:
        tokenizer: decodes the ids.
        stop: strings that end the text; they are not part of it.
        context: the ids before the first that is pushed; many decoders drop a space that begins a
            text. Those up to an end-of-text token do not count.

    Attributes:
        stopped: a stop string was found; later tokens are ignored.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        self._stop = [string for string in stop if string]
        self._decoder: _Bytes | _Window
        if tokenizer.joins_bytes:
            self._decoder = _Bytes(tokenizer)
        else:
            ends = [at for at, id in enumerate(context) if id == tokenizer.eot]
            before = context[ends[-1] + 1 if ends else 0 :]
            self._decoder = _Window(tokenizer, before[-_LONGEST_WINDOW:])
        self._held = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """Add a token; returns the text that is now certain, which may be empty."""
        return "" if self.stopped else self._take(self._decoder.push(id))

    def finish(self) -> str:
        """The text still held back; the bytes of an incomplete character become U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.finish())
        held, self._held = self._held, ""
        return text + held

    def _take(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        certain = len(text) - max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def text_of(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids that may begin or end within a character, as ``TextStream`` gives it."""
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, ids)) + stream.finish()


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``string``."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


class _Bytes:
    """The text of tokens that are bytes of UTF-8 each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """The text of tokens whose decoder looks at their neighbours.

    The last ids are decoded with and without the new one, and what that adds is new text. Broken
    UTF-8 in ids of single bytes never enters the window, because the library turns every byte of a
    run with one mistake in it into U+FFFD; here only the bytes of the mistake become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_ids = tokenizer.byte_ids
        self._stand_in = [id for id, byte in self._byte_ids.items() if byte == ord("?")]
        self._open: list[int] = []  # the ids of an incomplete character
        self._window: list[int] = []
        self._shown = ""  # the text of the window that was returned before
        for id in context:
            self.push(id)
        self._broken()
        self._shown = tokenizer.decode(self._window)

    def push(self, id: int) -> str:
        if id not in self._byte_ids:
            return self._broken() + self._add([id])
        ids = [*self._open, id]
        try:
            bytes(self._byte_ids[i] for i in ids).decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                self._open = ids
                return ""
            if not self._open:
                self._open = [id]
                return self._broken()
            return self._broken() + self.push(id)  # it may begin another character
        self._open = []
        return self._add(ids)

    def finish(self) -> str:
        text = self._broken() + self._tokenizer.decode(self._window)[len(self._shown) :]
        self._window, self._shown = [], ""
        return text

    def _broken(self) -> str:
        """U+FFFD for each byte of the incomplete character, which the window then leaves out."""
        count = len(self._open)
        if count:
            self._open = []
            # Another character takes their place, so that what follows does not begin the text.
            self._add(self._stand_in * count)
        return _BROKEN * count

    def _add(self, ids: list[int]) -> str:
        self._window += ids
        text = self._tokenizer.decode(self._window)
        if text.endswith(_BROKEN):  # perhaps a character of which only the beginning is there
            return ""
        new, self._shown = text[len(self._shown) :], text
        if len(self._window) > _LONGEST_WINDOW:
            self._shorten()
        return new

    def _shorten(self) -> None:
        start = len(self._window) - _KEPT
        while start and self._byte_ids.get(self._window[start], 0) & 0xC0 == 0x80:
            start -= 1  # not within a character
        shown = self._tokenizer.decode(self._window[start:])
        if shown:  # else the next token would begin a text
            self._window, self._shown = self._window[start:], shown
