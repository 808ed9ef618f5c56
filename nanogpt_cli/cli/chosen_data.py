"""The data that ``recipe new`` and ``import`` write into a recipe, with its earlier options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError
from nanogpt_cli.user_input import expanded

_HEAD: Final = 1 << 16  # bytes that tell what a file is
_DECODED: Final = (".gz", ".zst", ".parquet")


def checked(text: str) -> str:
    """Return ``text`` if it is a set that ``prepare`` can make, or a prepared one.

    Raises:
        UserError: there is no such set, file or folder, or a file holds no text.
    """
    from nanogpt_cli.text import catalogue, tokens

    path = expanded(text)
    if catalogue.find(text) or tokens.is_prepared(path):
        return text
    if text == "-" or not path.exists():
        raise catalogue.unknown(text)
    if path.is_file():
        _check_text(path)
    return text


def _check_text(path: Path) -> None:
    """Refuse a file that ``prepare`` refuses at its first bytes, whatever its options."""
    from nanogpt_cli import foreign_files
    from nanogpt_cli.text.sources import binary

    with foreign_files.opened(path) as file:
        head = file.read(_HEAD)
    if not head:
        raise UserError(f"there is no text in {path}: the file is empty", "name one with text")
    # What is unpacked or decoded while it is read may begin with any bytes.
    wrong = None if path.suffix.lower() in _DECODED else binary.refusal(head, str(path))
    if wrong:
        raise wrong


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
