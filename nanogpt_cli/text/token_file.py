"""A token file while it is written: by a thread of its own, which hashes what it writes.

Writing and hashing cost as much as turning bytes into ids does, so the threads that tokenize do not
wait for either, and no second pass over the finished file is needed for its sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanogpt_cli.text.tokenizer import Tokens

if TYPE_CHECKING:
    from hashlib import _Hash

_WAITING: Final = 4  # arrays that may wait to be written; bounds memory
_MARK: Final = 1 << 23  # bytes between two states of the hash that are kept


class TokenFile:
    """Writes ``path``; ``close`` or ``abandon`` it.

    An error of the disk is raised by one of the following calls of ``write``, or by ``close``.
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
        """Append ``tokens``, soon; the array must not be changed any more."""
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
        """Finish writing. Raises ``OSError`` where the disk refused something."""
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
            unchanged: the file was edited since, but not its first so many bytes; None: nowhere.
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
