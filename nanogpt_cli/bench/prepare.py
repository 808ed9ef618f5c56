"""``nanogpt bench prepare``: speed of tokenizing, compared with a plain tiktoken loop."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nanogpt_cli import assets, host
from nanogpt_cli.cli import console, options

_KINDS: Final = ("gpt2", "char", "byte")
Megabytes = Annotated[int, typer.Option(min=1, metavar="MB", help="Text to tokenize, in MB.")]
TextFile = Annotated[
    Path | None, typer.Option(help="Text file to repeat.  [default: the plays]", show_default=False)
]


def register(group: typer.Typer) -> None:
    """Add ``prepare`` to the group of benchmarks."""
    group.command()(prepare)


def prepare(
    megabytes: Megabytes = 256,
    source: TextFile = None,
    workers: options.Workers = None,
    scratch: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the temporary files go.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare the tokenizing speed of prepare with a single-threaded tiktoken loop, in one run."""
    text = source or assets.fetch("plays", report=console.say)
    load = os.getloadavg()[0]
    threads = workers or host.usable_cores()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="nanogpt-bench-") as folder:
        speeds = measure(text, megabytes * 10**6, threads, Path(folder))
    memory = host.peak_bytes()
    if as_json:
        rows = [_as_json(speed) for speed in speeds]
        console.emit_json({"prepare": rows, "load": load, "peak_memory_bytes": memory})
    else:
        _show(speeds)
    console.say(
        f"{speeds[0].bytes / 1e6:,.0f} MB of {text.name}, {host.usable_cores()} cores, "
        f"load {load:.1f} at the start, peak memory {memory / 1e6:,.0f} MB"
    )
    console.next_command("nanogpt bench sample")


def _show(speeds: list[Speed]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("way", "threads", "MB/s", "tokens/s", "CPU s", "times the loop"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for speed in speeds:
        ratio = speed.megabytes_per_s / speeds[0].megabytes_per_s
        table.add_row(
            speed.name, str(speed.threads), f"{speed.megabytes_per_s:.1f}",
            console.count(speed.tokens_per_s), f"{speed.cpu_seconds:.1f}", f"{ratio:.2f}",
        )  # fmt: skip
    console.stdout().print(table)


def _as_json(speed: Speed) -> dict[str, Any]:
    rates = {"megabytes_per_s": speed.megabytes_per_s, "tokens_per_s": speed.tokens_per_s}
    return dataclasses.asdict(speed) | rates


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


def measure(source: Path, size: int, threads: int, folder: Path) -> list[Speed]:
    """The loop over documents first, then ``prepare`` with gpt2, char and byte, on the same text.

    Args:
        source: a text file; it is repeated up to ``size`` bytes, each copy one document.
        threads: threads for ``prepare``.
        folder: an empty folder for the text and the token files.
    """
    from nanogpt_cli.text.tokenizers.gpt2_bpe import load_gpt2_encoding

    console.say(f"writing {size / 1e6:,.0f} MB of text")
    text, data = folder / "text.txt", source.read_bytes()
    with text.open("wb") as file:
        for _ in range(-(-size // len(data))):
            file.write(data)
    total = text.stat().st_size
    load_gpt2_encoding().encode("warm")
    console.say("measuring the single-thread document loop")
    loop = partial(document_loop, text, len(data), folder / "base.bin")
    found = [_timed("encode_ordinary loop", 1, total, loop)]
    for kind in _KINDS:
        console.say(f"measuring prepare with {kind} on {threads} threads")
        work = partial(_prepare, text, kind, threads, folder / kind)
        found.append(_timed(f"prepare {kind}", threads, total, work))
    return found


def document_loop(path: Path, length: int, out: Path) -> int:
    """The baseline: ``tiktoken.encode_ordinary`` on one document after the other, in one thread.

    Like nanoGPT's scripts it appends end of text to the list of ids and writes it as uint16.

    Args:
        path: documents of ``length`` bytes each, one after the other.

    Returns:
        tokens written.
    """
    import numpy as np

    from nanogpt_cli.text.tokenizers.gpt2_bpe import load_gpt2_encoding

    encoding = load_gpt2_encoding()
    count = 0
    with path.open("rb") as file, out.open("wb") as target:
        while block := file.read(length):
            ids = encoding.encode_ordinary(block.decode())
            ids.append(encoding.eot_token)
            target.write(np.array(ids, dtype=np.uint16).tobytes())
            count += len(ids)
    return count


def _prepare(text: Path, kind: str, threads: int, out: Path) -> int:
    from nanogpt_cli.text.prepare import Request
    from nanogpt_cli.text.prepare import prepare as run

    made = run(Request((str(text),), tokenizer=kind), out=out, workers=threads)
    return int(made.manifest["receipt"]["tokens"])


def _timed(name: str, threads: int, size: int, work: Callable[[], int]) -> Speed:
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Speed(name, threads, size, count, seconds, cpu_seconds)
