"""Output of ``nanogpt prepare``: the progress line, the receipt, the list of named sets."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import places, shell
from nanogpt_cli.cli import console

if TYPE_CHECKING:
    from rich.table import Table

    from nanogpt_cli.text.prepare import PrepareProgress

# model.block_size of the recipe small; a test compares them.
_CONTEXT = 64


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[PrepareProgress], None]]:
    """Show a live line with bytes, tokens/s and the time left if stderr is a terminal."""
    out = console.stderr()
    if not out.is_terminal:
        yield lambda _: None
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.DownloadColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("left"),
    )
    # Refreshed by us, because Rich's refresh thread would compete with the tokenizing ones.
    with rich_progress.Progress(*columns, console=out, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("reading", total=None, rate="")
        yield _Line(bar, task)


class _Line:
    """Draws the counters at most ten times a second, and each phase of the work from its start."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._doing = ""
        self._start = self._drawn = 0.0

    def __call__(self, progress: PrepareProgress) -> None:
        now = time.monotonic()
        if progress.doing != self._doing:
            self._doing, self._start, self._drawn = progress.doing, now, 0.0
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task(progress.doing, total=progress.total, rate="")
        if now - self._drawn < 0.1:
            return
        self._drawn = now
        rate = progress.tokens / max(1e-9, now - self._start)
        self._bar.update(
            self._task,
            completed=progress.bytes,
            total=progress.total,
            rate=f"{console.count(progress.tokens)} tokens, {console.count(rate)}/s"
            if progress.tokens
            else "",
            refresh=True,
        )


def short_path(path: Path) -> str:
    """The path relative to the current folder or the home folder if it is inside, else in full."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    with contextlib.suppress(ValueError, RuntimeError):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def train_command(manifest: dict[str, Any], folder: Path) -> str:
    """The command that trains on this set: the recipe ``small``, with a context the text fills.

    For a set without a validation split, on which ``train`` cannot evaluate, the command that
    prepares one with it.
    """
    from nanogpt_cli.text import again, tokens
    from nanogpt_cli.text.request import VAL_FRACTION

    if not manifest["request"].get("val_fraction", VAL_FRACTION):
        words = again.prepare_words(
            tokens.read_manifest(folder), manifest["tokenizer"]["kind"], val_fraction=VAL_FRACTION
        )
        return shell.command(*words or ("prepare", "--help"))
    name, kind = manifest["name"], manifest["tokenizer"]["kind"]
    if name == "shakespeare" and kind == "char" and folder == places.data_folder(name, kind):
        return shell.command("train", "small")
    words = ["train", "small", *shell.setting("data.name", shell.path_word(folder))]
    asked = Path(str(manifest["request"].get("tokenizer", kind)))
    words += shell.setting(
        "data.tokenizer", shell.path_word(asked) if asked.is_absolute() else kind
    )
    if (length := manifest["train"]["tokens"]) <= _CONTEXT:
        words += shell.setting("model.block_size", max(1, length - 1))
    return shell.command(*words)


def _plain_table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def print_receipt(manifest: dict[str, Any], folder: Path) -> None:
    """The data receipt, on stderr."""
    from nanogpt_cli.text.receipt import notes

    receipt = manifest["receipt"]
    out = console.stderr()
    kind = manifest["tokenizer"]["kind"]
    out.print(console.styled(("prepared", "bold"), f" {short_path(folder)}"))
    table = _plain_table()
    table.show_header = False
    for label, text in _receipt_rows(manifest, receipt, kind):
        table.add_row(label, text)
    out.print(table)
    for note in notes(manifest):
        out.print(console.styled(("note:", "yellow"), f" {note}"))


def _receipt_rows(
    manifest: dict[str, Any], receipt: dict[str, Any], kind: str
) -> Iterator[tuple[str, str]]:
    train, val, split = manifest["train"], manifest["val"], manifest["split"]
    yield "documents", f"{receipt['documents']:,}"
    yield "text", f"{receipt['bytes']:,} bytes"
    yield "tokens", f"{receipt['tokens']:,} {kind}, {manifest['dtype']}"
    yield (
        "split",
        (
            f"{train['tokens']:,} train / {val['tokens']:,} val "
            f"({split['rule']}, {split['val_fraction']:g})"
        ),
    )
    yield "bytes per token", f"{receipt['bytes_per_token']:.3f}"
    used, size = receipt["unique_tokens"], receipt["vocab_size"]
    yield "vocabulary used", f"{used:,} of {size:,} ({used / max(1, size):.1%})"
    longest = receipt.get("longest_document")
    if longest:
        where = f" ({short_path(Path(longest['source']))})" if receipt["documents"] > 1 else ""
        yield "longest document", f"{longest['tokens']:,} tokens{where}"
    frequent = (
        f"{t.get('quoted') or repr(t['text'])} {t['share']:.1%}" for t in receipt["most_frequent"]
    )
    yield "most frequent", ", ".join(frequent)
    if "duplicates" in receipt and "leakage" in receipt:
        yield "duplicates", f"{receipt['duplicates']:,} documents"
        yield "leakage", leakage_words(receipt["leakage"])
    if "round_trip" in receipt:
        trip = receipt["round_trip"]
        yield "round trip", f"{trip['exact']} of {trip['samples']} samples decode to themselves"


def leakage_words(leakage: dict[str, Any]) -> str:
    """The leakage check in words."""
    if leakage["share"] is None:
        return "no whole validation document to compare"
    held, leaked = leakage["val_documents"], leakage["in_train"]
    return f"{leaked:,} of {held:,} validation documents ({leakage['share']:.2%}) are also in train"


def print_sets(as_json: bool) -> None:
    """The sets known by name, on stdout."""
    from nanogpt_cli.text import catalogue

    if as_json:
        rows = [dataclasses.asdict(s) for s in catalogue.SETS.values()]
        console.emit_json({"sets": rows})
        console.next_command("nanogpt prepare shakespeare")
        return
    table = _plain_table()
    for title in ("name", "size", "tokens", "licence", "source"):
        table.add_column(title, overflow="fold")
    for named in catalogue.SETS.values():
        table.add_row(named.name, named.size, named.tokens, named.licence, named.origin)
    console.stdout().print(table)
    console.next_command("nanogpt prepare shakespeare")
