"""``nanogpt data``: list the prepared sets, and inspect one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options, prepare_view
from nanogpt_cli.cli.prepare_view import short_path
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.text.tokens import TokenData

group = typer.Typer(help="List prepared data sets, or inspect one.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="data")


@group.callback()
def data(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List the prepared sets: in ./data and in the cache."""
    if context.invoked_subcommand:
        return
    from nanogpt_cli.text import look, tokens

    folders = look.prepared_folders()
    if as_json:
        console.emit_json({"sets": {str(f): tokens.read_manifest(f).raw for f in folders}})
    elif folders:
        _list(folders)
    else:
        console.say("no prepared data sets yet")
    console.next_command(
        shell.command("data", "inspect", shell.path_word(folders[0]))
        if folders
        else shell.command("prepare", "shakespeare")
    )


def _list(folders: list[Path]) -> None:
    """A table for each place; a set's folder there is the name that other commands take."""
    from nanogpt_cli.text import tokens

    places: dict[Path, list[tuple[str, ...]]] = {}
    for folder in folders:
        about = tokens.read_manifest(folder)
        counts = (f"{split.tokens:,}" for split in (about.train, about.val))
        row = (folder.name, about.kind, *counts)
        places.setdefault(folder.parent, []).append(row)
    for place, rows in places.items():
        table = console.fitting(
            ("set", "tokenizer", "train", "val"), rows, numbers=("train", "val"),
            shorten=("set",), title=f"in {short_path(place)}",
        )  # fmt: skip
        console.print_table(table)


@group.command()
def inspect(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A prepared set.")],
    windows: Annotated[
        int, typer.Option(min=0, max=10_000, help="Sample windows from each split.")
    ] = 2,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a window.")] = 64,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=options.LARGEST_SEED, help="Seed of the windows' positions."
        ),
    ] = 0,
    top: Annotated[int, typer.Option(min=1, help="Tokens in the histogram.")] = 16,
    as_json: options.AsJson = False,
) -> None:
    """Show a set's manifest, sample windows and token histogram, and verify its hashes.

    The exit code is 1 when a file is not what the manifest says.
    """
    from nanogpt_cli.text import look, prepare, tokens

    folder = prepare.find(name)
    try:
        opened = tokens.open_data(folder, verify=True)
    except UserError as error:
        console.say(f"damaged: {error.message}")
        console.say(f"hint: {error.hint}")
        raise typer.Exit(1) from error
    shown = look.windows(opened, count=windows, length=length, seed=seed)
    if as_json:
        console.emit_json(_as_json(opened, shown, top))
    else:
        _print(opened, shown, top)
    console.next_command(prepare_view.train_command(opened.manifest.raw, folder))


def _counts(opened: TokenData) -> Any:
    from nanogpt_cli.text import look

    size = opened.vocab_size
    return look.histogram(opened.train, size) + look.histogram(opened.val, size)


def _as_json(opened: TokenData, shown: list[Any], top: int) -> dict[str, Any]:
    from nanogpt_cli.text import look

    counts = _counts(opened)
    order = (-counts).argsort(kind="stable")[:top]
    return {
        "folder": str(opened.folder),
        "verified": True,
        "manifest": opened.manifest.raw,
        "windows": [dataclasses.asdict(window) for window in shown],
        "histogram": {int(i): int(counts[i]) for i in order},
        "entropy_bits": look.entropy_bits(counts),
    }


def _print(opened: TokenData, shown: list[Any], top: int) -> None:
    out, about = console.stdout(), opened.manifest
    out.print(console.styled((about.name, "bold"), f"  {opened.folder}"), soft_wrap=True)
    out.print(f"  written by {about.tool}; both sha256 verified")
    for split, info in (("train", about.train), ("val", about.val)):
        out.print(
            f"  {split}: {info.tokens:,} tokens, {info.bytes:,} bytes "
            f"({info.bytes_per_token:.3f} per token), {info.documents:,} documents, "
            f"sha256 {info.sha256[:16]}…",
            soft_wrap=True,
        )
    out.print(
        f"  tokenizer: {about.kind}, {about.vocab_size:,} ids, {about.dtype}; "
        f"split: {about.split}, {about.val_fraction:g}",
        soft_wrap=True,
    )
    sources = about.raw["sources"]
    where = ", ".join(Path(p).name for p in sources["first"])
    more = ", …" if sources["files"] > len(sources["first"]) else ""
    out.print(
        f"  sources ({sources['files']:,}): {sources['bytes']:,} bytes: {where}{more}",
        soft_wrap=True,
    )
    for window in shown:
        out.print(f"\n{window.split}[{window.start:,}:]", style="dim")
        out.print(window.text, soft_wrap=True)
    _print_histogram(opened, top)


def _print_histogram(opened: TokenData, top: int) -> None:
    from rich.cells import cell_len

    from nanogpt_cli.text import look
    from nanogpt_cli.text.tokenizers.tokenizer import quoted

    out, counts = console.stdout(), _counts(opened)
    total, order = int(counts.sum()), (-counts).argsort(kind="stable")[:top]
    used = int((counts > 0).sum())
    out.print(
        f"\ntokens used: {used:,} of {len(counts):,}; entropy of their frequencies "
        f"{look.entropy_bits(counts):.3f} bits per token",
        soft_wrap=True,
    )
    widest = max(1, int(counts[order[0]]))
    for i in order:
        text = quoted(opened.tokenizer.token_bytes(int(i)))
        bar = "█" * max(1, round(40 * int(counts[i]) / widest)) if counts[i] else ""
        share = int(counts[i]) / max(1, total)
        text += " " * (14 - cell_len(text))
        out.print(f"  {int(i):>6} {text} {share:>7.2%} {bar}")
