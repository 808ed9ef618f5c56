"""Measuring the speed of tokenization, compared with a plain loop over documents."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nanogpt_cli import host


@dataclass(frozen=True)
class Speed:
    """The measured speed of one way of tokenizing.

    Attributes:
        bytes: bytes of text.
        seconds: wall-clock time from the file on disk to token files on disk.
        cpu_seconds: processor time of all threads; the fairer figure on a busy machine.
    """

    name: str
    threads: int
    bytes: int
    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def megabytes_per_s(self) -> float:
        """10^6 bytes of text per second."""
        return self.bytes / self.seconds / 1e6

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


_KINDS: Final = ("gpt2", "char", "byte")


def repeat_text(source: Path, target: Path, size: int) -> int:
    """Write ``source`` repeatedly until ``target`` has at least ``size`` bytes."""
    data = source.read_bytes()
    with target.open("wb") as file:
        for _ in range(-(-size // len(data))):
            file.write(data)
    return target.stat().st_size


def document_loop(path: Path, length: int, out: Path) -> int:
    """The baseline: ``tiktoken.encode_ordinary`` on one document after the other, in one thread.

    Like nanoGPT's scripts it appends end of text to the list of ids and writes it as uint16.

    Args:
        path: documents of ``length`` bytes each, one after the other.

    Returns:
        tokens written.
    """
    import numpy as np

    from nanogpt_cli.text import tokenizers

    encoding = tokenizers.get("gpt2").encoding  # type: ignore[attr-defined]
    count = 0
    with path.open("rb") as file, out.open("wb") as target:
        while block := file.read(length):
            ids = encoding.encode_ordinary(block.decode())
            ids.append(encoding.eot_token)
            target.write(np.array(ids, dtype=np.uint16).tobytes())
            count += len(ids)
    return count


def measure(
    source: Path,
    size: int,
    *,
    workers: int | None,
    report: Callable[[str], None],
    folder: Path | None = None,
) -> list[Speed]:
    """Measure the baseline and ``prepare`` on the same text, one after the other.

    Args:
        source: a text file; it is repeated up to ``size`` bytes, each copy one document.
        workers: threads for ``prepare``; by default one per core.
        report: receives a short line before each measurement.
        folder: folder for the temporary files; by default the system's.

    Returns:
        the baseline first, then ``prepare`` with gpt2, char and byte.
    """
    from nanogpt_cli.text import tokenizers

    threads = workers or host.usable_cores()
    with tempfile.TemporaryDirectory(dir=folder, prefix="nanogpt-bench-") as name:
        text = Path(name) / "text.txt"
        report(f"writing {size / 1e6:,.0f} MB of text")
        total = repeat_text(source, text, size)
        tokenizers.get("gpt2").encode("warm")
        report("measuring the single-thread document loop")
        length, base = source.stat().st_size, Path(name) / "base.bin"
        loop = functools.partial(document_loop, text, length, base)
        found = [_timed("encode_ordinary loop", 1, total, loop)]
        for kind in _KINDS:
            report(f"measuring prepare with {kind} on {threads} threads")
            work = functools.partial(_prepare, text, kind, threads, Path(name) / kind)
            found.append(_timed(f"prepare {kind}", threads, total, work))
    return found


def _prepare(text: Path, kind: str, threads: int, out: Path) -> int:
    from nanogpt_cli.text.prepare import Request, prepare

    made = prepare(Request((str(text),), tokenizer=kind), out=out, workers=threads)
    return int(made.manifest["receipt"]["tokens"])


def _timed(name: str, threads: int, size: int, work: Callable[[], int]) -> Speed:
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Speed(name, threads, size, count, seconds, cpu_seconds)
