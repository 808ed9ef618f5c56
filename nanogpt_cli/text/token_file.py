"""Writing a token file in a separate thread that also hashes what it writes.

Writing and hashing take as long as turning bytes into ids does, so the threads that tokenize do not
wait for either, and the sha256 needs no second pass over the finished file.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanogpt_cli.text.tokenizers.tokenizer import Tokens

if TYPE_CHECKING:
    from hashlib import _Hash

_WAITING: Final = 4  # arrays that may wait to be written; bounds memory
_MARK: Final = 1 << 23  # bytes between two saved states of the hash


class TokenFile:
    """Writes ``path``; must be ended by ``close`` or ``abandon``.

    An error of the disk is raised by one of the next calls of ``write``, or by ``close``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize-write")
        self._waiting: deque[Future[None]] = deque()
        self._digest = hashlib.sha256()
        self._size = 0
        self._marks: list[tuple[int, _Hash]] = [(0, self._digest.copy())]

    def write(self, tokens: Tokens) -> None:
        """Append ``tokens`` in the background; the array must not be changed afterwards."""
        if not len(tokens):
            return
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, tokens))

    def _write(self, tokens: Tokens) -> None:
        self._file.write(tokens.data)
        self._digest.update(tokens.data)
        self._size += tokens.nbytes
        if self._size - self._marks[-1][0] >= _MARK:
            self._marks.append((self._size, self._digest.copy()))

    def close(self) -> None:
        """Finish writing. Raises ``OSError`` if a write failed."""
        while self._waiting:
            self._waiting.popleft().result()
        self._thread.shutdown()
        self._file.close()

    def abandon(self) -> None:
        """Stop writing and close the file as it is; nothing is raised."""
        self._thread.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            self._file.close()

    def sha256(self, unchanged: int | None = None) -> str:
        """The closed file's sha256.

        Args:
            unchanged: the number of bytes at the file's start that were not edited since; None if
                nothing was edited.
        """
        if unchanged is None:
            return self._digest.hexdigest()
        size, digest = next(mark for mark in reversed(self._marks) if mark[0] <= unchanged)
        digest = digest.copy()
        with self.path.open("rb") as file:
            file.seek(size)
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
