"""``nanogpt bench prepare``: speed of tokenizing, compared with a plain tiktoken loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import assets, host
from nanogpt_cli.cli import console, options

if TYPE_CHECKING:
    from nanogpt_cli.bench.prepare_speed import Speed

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
    from nanogpt_cli.bench import prepare_speed

    text = source or assets.fetch("plays", report=console.say)
    load = os.getloadavg()[0]
    speeds = prepare_speed.measure(
        text, megabytes * 10**6, workers=workers, report=console.say, folder=scratch
    )
    if as_json:
        console.emit_json(_as_json(speeds, load, host.peak_bytes()))
    else:
        _show(speeds)
    console.say(
        f"{speeds[0].bytes / 1e6:,.0f} MB of {text.name}, {host.usable_cores()} cores, "
        f"load {load:.1f} at the start, peak memory {host.peak_bytes() / 1e6:,.0f} MB"
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


def _as_json(speeds: list[Speed], load: float, memory: int) -> dict[str, Any]:
    rows = [
        {
            "name": speed.name, "threads": speed.threads, "bytes": speed.bytes,
            "tokens": speed.tokens, "seconds": speed.seconds, "cpu_seconds": speed.cpu_seconds,
            "megabytes_per_s": speed.megabytes_per_s, "tokens_per_s": speed.tokens_per_s,
        }
        for speed in speeds
    ]  # fmt: skip
    return {"prepare": rows, "load": load, "peak_memory_bytes": memory}
