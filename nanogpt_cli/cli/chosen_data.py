"""The data that ``recipe new`` and ``import`` write into a recipe, with its earlier options."""

from __future__ import annotations

from typing import Any

from nanogpt_cli.cli import console
from nanogpt_cli.user_input import expanded


def checked(text: str) -> str:
    """Return ``text`` if it is a set that ``prepare`` can make, or a prepared one.

    Raises:
        UserError: there is no such set, file or folder.
    """
    from nanogpt_cli.text import catalogue, tokens

    path = expanded(text)
    if catalogue.find(text) or tokens.is_prepared(path) or (text != "-" and path.exists()):
        return text
    raise catalogue.unknown(text)


def as_prepared(data: str) -> dict[str, Any]:
    """The options with which this text was prepared last, as keys of ``[data]``."""
    from nanogpt_cli.recipe import problems
    from nanogpt_cli.text import catalogue, look, tokens

    if catalogue.find(data):
        return {}
    path = expanded(data)
    folder = path if tokens.is_prepared(path) else look.newest_of(path)
    if folder is None:
        return {}
    about = tokens.read_manifest(folder)
    if folder == path:  # the set itself; its options are those of its text
        return {"tokenizer": about.kind}
    asked = {k: v for k, v in about.raw["request"].items() if k != "inputs" and v is not None}
    console.say(f"options of [data] as in {folder}, which was prepared from {data}")
    return {key: value for key, value in asked.items() if key in problems.keys()["data"]}
