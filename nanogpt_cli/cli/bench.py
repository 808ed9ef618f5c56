"""``nanogpt bench``: benchmarks that reproduce every speed this project claims."""

from __future__ import annotations

import importlib

import typer

group = typer.Typer(help="Measure speed, also beside other programs.", no_args_is_help=True)

# Each is a module ``bench/NAME.py`` with ``register(group)``. They are imported by name, because
# ``bench`` is a room above this one.
PARTS = ("train", "race", "startup", "prepare", "inspect", "sample", "tui", "gpu")


def register(app: typer.Typer) -> None:
    """Add the group with one command per benchmark."""
    for part in PARTS:
        importlib.import_module(f"nanogpt_cli.bench.{part}").register(group)
    app.add_typer(group, name="bench")
