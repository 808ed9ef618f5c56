"""``nanogpt bench train --growth``: cost by context, depth, batch and size, one key at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe

# Multiples of the recipe's context, depth and batch.
_FACTORS = (0.5, 1, 2, 4)
_SECONDS = 2.0
# Multiples of the recipe's channels; from 128 they give 1, 4, 15 and 60 times the parameters.
_WIDTHS = (1, 2, 4, 8)
_CHILD = """
import json, sys
from pathlib import Path
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.training.studies.growth import MEASURES
from nanogpt_cli.text.tokens import open_data
job = json.loads(sys.argv[1])
recipe = recipe_files.from_values(job["recipe"])
found = MEASURES[job["measure"]](recipe, open_data(Path(job["data"])), **job["more"])
print(json.dumps(found))
"""


def run(recipe: Recipe) -> dict[str, Any]:
    """Measure every shape, each in a separate process."""
    from nanogpt_cli.text import prepare

    data = prepare.ensure(recipe.data.model_dump(), report=console.say)
    rows = []
    for kind, measure, label, changes in shapes(recipe):
        console.say(f"measuring {kind} {label}")
        rows.append({"by": kind, "value": label, **_measure(recipe, data, measure, changes)})
    return {"growth": rows, "recipe": recipe.model_dump(mode="json")}


def shapes(recipe: Recipe) -> list[tuple[str, str, int, dict[str, dict[str, int]]]]:
    """(what is varied, measure, its value, changes to the recipe) of every row.

    Context is varied at a constant number of tokens per step; the others are varied alone.
    """
    model, train = recipe.model, recipe.train
    tokens = model.block_size * train.batch_size
    found: list[tuple[str, str, int, dict[str, dict[str, int]]]] = []
    for factor in _FACTORS:
        T = int(model.block_size * factor)
        batch = max(1, tokens // T)
        changes = {"model": {"block_size": T}, "train": {"batch_size": batch}}
        found.append(("context", "pace", T, changes))
    for factor in _FACTORS:
        depth = max(1, int(model.n_layer * factor))
        found.append(("depth", "pace", depth, {"model": {"n_layer": depth}}))
    for factor in _FACTORS:
        batch = max(1, int(train.batch_size * factor))
        found.append(("batch", "pace", batch, {"train": {"batch_size": batch}}))
    for factor in _WIDTHS:
        width = model.n_embd * factor
        found.append(("width", "checkpoint", width, {"model": {"n_embd": width}}))
    return found


def _measure(
    recipe: Recipe, data: Path, measure: str, changes: dict[str, dict[str, int]]
) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    values["train"]["tokens_per_step"] = 0
    for section, keys in changes.items():
        values[section] |= keys
    job = {
        "recipe": values,
        "data": str(data),
        "measure": measure,
        "more": {"seconds": _SECONDS} if measure == "pace" else {},
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"measuring {changes} failed: {reason}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: list[dict[str, Any]], recipe: Recipe) -> None:
    """Print the rows as a table."""
    model = recipe.model
    title = (
        f"one key at a time from {model.n_layer} layers, {model.n_embd} channels, context "
        f"{model.block_size}, batch {recipe.train.batch_size}"
    )
    table = console.simple_table(title, ("", "parameters", "tokens/s", "peak memory", "checkpoint"))
    for row in rows:
        pace, peak = row.get("tokens_per_s"), row.get("peak_bytes")
        saved = (
            f"{row['bytes'] / 1e6:,.1f} MB in {row['seconds']:.2f} s" if "seconds" in row else "–"
        )
        table.add_row(
            f"{row['by']} {row['value']}", console.count(row["parameters"]),
            console.count(pace) if pace else "–", f"{peak / 1e6:,.0f} MB" if peak else "–", saved,
        )  # fmt: skip
    console.stdout().print(table)
