"""Commands of this program that a message proposes, written so that a shell takes them as printed.

Every "next:" line and every command in a hint is made here. A hint puts its commands between
backticks, so that they can be told from the sentence around them.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanogpt_cli import parsing

# What $'…' writes shorter than as a number.
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\x1b": "\\e", "'": "\\'", "\\": "\\\\"}


def command(*words: object) -> str:
    """A command line of this program.

    Args:
        words: the subcommand, its arguments and options, unquoted; paths and numbers as they are.
    """
    return " ".join(["nanogpt", *(quoted(str(word)) for word in words)])


def hint(*words: object) -> str:
    """The same between backticks, for a sentence."""
    return f"`{command(*words)}`"


def quoted(word: str) -> str:
    """One word as a POSIX shell takes it; control characters and broken bytes as ``$'\\x1b'``."""
    if word.isprintable() and "`" not in word:
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if found := _ESCAPES.get(character):
        return found
    if character.isprintable() and character != "`":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def path_word(path: Path) -> str:
    """A path for a command: relative where it lies below the current folder, else absolute.

    A path that would begin with a dash or a tilde is absolute too, for it would be taken for an
    option or a home folder.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    here = Path.cwd()
    text = str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
    return str(absolute) if text.startswith(("-", "~")) else text


def setting(key: str, value: Any) -> list[str]:
    """The words ``--set KEY=VALUE`` that give a recipe's key this value.

    A string is written bare unless it would then be read as something else (``2024`` a number).
    """
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's one more
    if isinstance(value, str) and _is_bare(value):
        text = value
    return ["--set", f"{key}={text}"]


def _is_bare(text: str) -> bool:
    """Whether ``--set KEY=text`` is read as this very string."""
    if text != text.strip() or not text:
        return False
    try:
        parsing.parse_toml(f"value = {text}")
    except ValueError:
        return True
    return False


def settings(sets: Iterable[str] | None) -> list[str]:
    """The words that repeat overrides ``KEY=VALUE`` as they were given."""
    return [word for text in sets or () for word in ("--set", text)]
