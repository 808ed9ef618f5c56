"""``nanogpt prepare``: turn any text into token files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli.cli import console, options, prepare_view

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME|PATH",
        help="A named set (see --list), files, folders, or - for standard input.",
        show_default=False,
    ),
]
TokenizerKind = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        "-t",
        metavar="KIND",
        help="char, byte, gpt2, cl100k_base, o200k_base, bpe:SIZE (trained on this text), or the "
        "path of a run, a prepared set or a Hugging Face tokenizer.json. Default: that of the "
        "named set, else gpt2.",
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="tail (the end of the text, like nanoGPT), hash (each document by its hash), or "
        "auto: hash for many records or files, else tail."
    ),
]
ValFraction = Annotated[
    float | None,
    typer.Option(help="Share of the text for validation.  [default: 0.1]", show_default=False),
]
Errors = Annotated[
    str, typer.Option(help="For undecodable bytes: strict (stop), replace (by U+FFFD), or skip.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Prepare again, and replace what the folder holds.")
]
ListSets = Annotated[bool, typer.Option("--list", help="List the sets known by name.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prepare)


def prepare(
    inputs: Inputs = None,
    tokenizer: TokenizerKind = "",
    split: Split = "auto",
    val_fraction: ValFraction = None,
    name: Annotated[str | None, typer.Option(help="Name of the prepared set.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write.", metavar="FOLDER"),
    ] = None,
    glob: Annotated[str | None, typer.Option(help="Files to take from a folder: *.py.")] = None,
    text_field: Annotated[
        str,
        typer.Option(
            help="Field of a record (JSON, CSV, Parquet) that holds the text or a chat's messages; "
            "also a path: text.body."
        ),
    ] = "text",
    errors: Errors = "strict",
    encoding: Annotated[
        str, typer.Option(help="Encoding of text files without a byte-order mark.")
    ] = "utf-8",
    newlines: Annotated[
        str, typer.Option(help="keep, or lf: turn the line ends CRLF and CR into LF.")
    ] = "keep",
    eot: Annotated[
        bool, typer.Option("--eot", help="Give char and byte an end-of-text token.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many documents.")
    ] = None,
    workers: options.Workers = None,
    force: Force = False,
    list_sets: ListSets = False,
    as_json: options.AsJson = False,
) -> None:
    """Turn text into token files for train (and for nanoGPT).

    Inputs are .txt, .md, .json, .jsonl, .csv, .parquet and source code, also as .gz or .zst, and
    folders.
    """
    if list_sets:
        prepare_view.print_sets(as_json)
        return
    from nanogpt_cli.text import prepare as room

    request = room.Request(
        inputs=tuple(inputs or ()), tokenizer=tokenizer, split=split,
        val_fraction=room.VAL_FRACTION if val_fraction is None else val_fraction,
        glob=glob, text_field=text_field, errors=errors, encoding=encoding, newlines=newlines,
        eot=eot, limit=limit,
    )  # fmt: skip
    try:
        with prepare_view.progress_line() as progress:
            made = room.prepare(
                request, name=name, out=out, force=force, workers=workers,
                report=console.say, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.say("stopped: nothing was written")
        raise
    _conclude(made.folder, made.manifest, made.fresh, as_json)


def _conclude(folder: Path, manifest: dict[str, Any], fresh: bool, as_json: bool) -> None:
    shown = prepare_view.short_path(folder)
    if fresh:
        prepare_view.print_receipt(manifest, folder)
    else:
        console.say(f"already prepared: {shown} (inputs unchanged; --force makes it again)")
    console.next_command(prepare_view.train_command(manifest, folder))
    if as_json:
        console.emit_json(manifest)
