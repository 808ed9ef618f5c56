"""Writing recipe files that extend another recipe, and the JSON schema for editors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from nanogpt_cli import places
from nanogpt_cli.printable import printable
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.recipe.sections import Recipe


def derived(base: str, values: Mapping[str, Any], sets: Sequence[str], *, folder: Path) -> str:
    """The text of a recipe file that extends another and holds only the differences.

    Args:
        base: the recipe to extend.
        values: ``"section.key"`` -> value; values that ``base`` has already are left out.
        sets: overrides as in ``load``.
        folder: where the file will lie, for the path to a ``base`` that is a file.

    Raises:
        UserError: the result would not be valid.
    """
    old = recipe_files.load(base).recipe.model_dump(mode="json")
    new = merged(base, values, sets)
    what = printable(str(values.get("data.name", base)), keep="")  # a comment is one line
    lines = [f"#:schema {schema_file()}", f"# what:    {what}", ""]
    parent = os.path.relpath(base, folder) if Path(base).is_file() else base
    lines.append(tomli_w.dumps({"extends": str(parent)}).strip())
    for section, content in new.model_dump(mode="json").items():
        changed = {k: v for k, v in content.items() if v != old[section].get(k)}
        if section == "sample" and not new.sample.prompt:
            changed.pop("prompt", None)  # other data takes the prompt of the base away
        changed = content if changed and section == "init" else changed  # inherited as a whole
        lines += ["", tomli_w.dumps({section: changed}).strip()] if changed else []
    return "\n".join(lines) + "\n"


def merged(base: str, values: Mapping[str, Any], sets: Sequence[str]) -> Recipe:
    """A recipe with ``values`` and overrides, as in ``derived``."""
    overrides = [tomli_w.dumps({"v": v}).strip().removeprefix("v = ") for v in values.values()]
    named = [f"{key}={text}" for key, text in zip(values, overrides, strict=True)]
    return recipe_files.load(base, [*named, *sets]).recipe


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    found = Recipe.model_json_schema()
    extends = {"type": "string", "description": "A recipe file, or a shipped recipe's name."}
    properties = {"extends": extends, **found.pop("properties")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found} | {
        "properties": properties
    }


def schema_file() -> Path:
    """The path of the schema, which ``#:schema`` on a recipe's first line names."""
    return places.shipped_recipes() / "recipe.schema.json"
