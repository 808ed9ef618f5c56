"""``nanogpt bench``: every speed this project speaks of, measured again by anyone."""

from __future__ import annotations

import importlib

import typer

group = typer.Typer(help="Measure speed against peers and slow twins.", no_args_is_help=True)

# Each is a module ``bench/NAME.py`` with ``register(group)``: named here and imported when
# called, because it builds on this room.
PARTS = ("train", "race", "startup", "prepare", "inspect", "sample", "tui")


def register(app: typer.Typer) -> None:
    """Add the group with its parts."""
    for part in PARTS:
        importlib.import_module(f"nanogpt_cli.bench.{part}").register(group)
    app.add_typer(group, name="bench")
