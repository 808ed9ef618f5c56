"""``nanogpt bench gpu``: what only a GPU can tell, checked and measured by one command."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import files, foreign_files, shell
from nanogpt_cli.bench import history, turns
from nanogpt_cli.bench.on_gpu import process
from nanogpt_cli.bench.on_gpu.items import ITEMS
from nanogpt_cli.bench.on_gpu.report import Setting
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.events import plain

# An item's limit is meant for a GPU; two busy CPU cores compile the smallest model in a minute.
_PATIENCE = {"cuda": 1, "cpu": 4}
_LONGEST = 70  # characters of an error in the table; the file has all of it


def register(group: typer.Typer) -> None:
    """Add ``gpu`` to the group of benchmarks."""
    group.command(name="gpu")(bench_gpu)


def bench_gpu(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="Where to keep the results as they come."),
    ] = Path("bench-gpu.json"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ITEM", help=f"Repeatable: {', '.join(ITEMS)}."),
    ] = None,
    against: options.NanoGPT = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.01, help="Time for all items together.")
    ] = 10.0,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="auto, cpu, cuda, mps; cpu tries the command itself, mps is refused."
        ),
    ] = "auto",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Smallest sizes, as with cpu; figures mean nothing.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check and measure this program on a GPU, in ten minutes.

    Each item is a process with a time limit, and FILE holds what is finished at any moment. The
    data are random tokens; nothing is downloaded. The exit code is 1 if an item failed.
    """
    chosen = _chosen(only)
    device = "cuda" if device == "auto" else device
    _check(out, against, device)
    tiny = tiny or device == "cpu"
    results = Results(out, {"device": device, "tiny": tiny, "minutes": minutes})
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-", ignore_cleanup_errors=True) as name:
        for item in chosen:
            folder = Path(name) / item
            folder.mkdir()
            setting = Setting(device, tiny, folder, against and against.absolute())
            limit_s = min(60 * minutes - results.seconds, ITEMS[item].limit_s * _PATIENCE[device])
            results.add(item, setting, limit_s, Path(name) / "home")
    passed = results.finish()
    if as_json:
        console.emit_json(results.values)
    else:
        _show(results.values, out)
    console.next_command(shell.command("docs", "benchmarks"))
    if not passed:
        raise typer.Exit(1)


class Results:
    """The results so far, in memory and in a file that is whole at any moment.

    Args:
        out: the file.
        head: what they were measured with.
    """

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.out = out
        self.values = history.line("gpu", {**head, "seconds": 0.0, "passed": None, "items": []})
        self._started = time.monotonic()
        self._done: list[dict[str, Any]] = []
        self._keep()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def add(self, name: str, setting: Setting, limit_s: float, home: Path) -> None:
        """Carry out an item, and keep its parts as they come.

        Args:
            name: of the item.
            setting: where and how.
            limit_s: seconds it may take; if there are none, it is not begun.
            home: ``NANOGPT_HOME`` of its process.
        """
        about = {"name": name, "about": ITEMS[name].about}
        if limit_s <= 0:
            why = "not begun: the time for all items was over"
            self._done.append({**about, "status": "failed", "error": why, "parts": []})
            self._keep()
            return
        console.say(f"{name}: {ITEMS[name].about}")
        told: process.Parts = []

        def tell(parts: process.Parts) -> None:
            for part in parts[len(told) :]:
                console.say(f"  {part['name']}: {part['status']} {_short(part['error'])}".rstrip())
                told.append(part)

        def begun(parts: process.Parts) -> None:
            self._keep({**about, "status": "running", "error": "", "parts": parts})
            tell(parts)

        begun([])
        found = process.run(name, setting, limit_s, home, begun)
        tell(found["parts"])
        self._done.append(about | found)
        self._keep()
        console.say(f"{name}: {found['status']} after {found['seconds']:.0f} s")

    def finish(self) -> bool:
        """Whether no item failed."""
        self.values["passed"] = all(item["status"] != "failed" for item in self._done)
        self._keep()
        return bool(self.values["passed"])

    def _keep(self, *running: dict[str, Any]) -> None:
        self.values |= {"seconds": self.seconds, "items": [*self._done, *running]}
        with files.readable_os_errors("write the results", self.out):
            files.write_json(self.out, plain(self.values))


def _chosen(only: list[str] | None) -> list[str]:
    """The items to run, in their own order."""
    unknown = [name for name in only or [] if name not in ITEMS]
    if unknown:
        raise UserError(f"--only {unknown[0]} is not an item", f"the items: {', '.join(ITEMS)}")
    return [name for name in ITEMS if not only or name in only]


def _check(out: Path, against: Path | None, device: str) -> None:
    if not hasattr(os, "killpg"):
        raise UserError("bench gpu ends groups of processes, which this system cannot do")
    if foreign_files.present(out):
        raise UserError(f"{out} exists", "name another file with --out")
    if against is not None:
        turns.script_of(against)
    if device not in ("cuda", "cpu"):
        raise UserError(
            f"--device {device} is not cuda or cpu",
            "--device cpu rehearses every item on the smallest models, without a GPU",
        )
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "PyTorch sees no GPU here",
                f"try the command on the CPU: {shell.hint('bench', 'gpu', '--device', 'cpu')}",
            )


def _short(error: str) -> str:
    return error if len(error) <= _LONGEST else f"{error[:_LONGEST]}…"


def _show(values: dict[str, Any], out: Path) -> None:
    table = console.simple_table(f"on {values['device']}", ("", "", "seconds"))
    said = []
    for item in values["items"]:
        table.add_row(item["name"], item["status"], f"{item.get('seconds', 0):.0f}")
        for part in item["parts"]:
            table.add_row(f"  {part['name']}", part["status"], f"{part['seconds']:.1f}")
        if item["error"]:
            said.append(f"{item['name']}: {item['error']}")
    show = console.stdout()
    show.print(table)
    if values["tiny"]:
        show.print("the sizes were the smallest: no figure means anything")
    for line in said:
        show.print(line)
    console.say(f"the figures are in {out}")
