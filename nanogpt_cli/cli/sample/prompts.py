"""The prompts of ``nanogpt sample``: from an option, a file, a list of lines, or a pipe."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from nanogpt_cli import foreign_files, parsing
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import checked

LARGEST = 1 << 24  # bytes of prompts


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        text: what is to be continued.
        where: file and line of a prompt that is one of several, for messages; else empty.
    """

    text: str
    where: str = ""


def gather(
    prompt: str | None, prompt_file: Path | None, prompts: Path | None, *, ask_stdin: bool
) -> list[Prompt] | None:
    """The given prompts, or ``None`` for the model's default prompt.

    Args:
        prompt: the text of a prompt; "-" is standard input.
        prompt_file: a file with one prompt; "-" is standard input.
        prompts: a file with one prompt per line.
        ask_stdin: whether to read standard input if it is a pipe or a file and no prompt is given.

    Raises:
        UserError: a file cannot be read, or a prompt is empty.
    """
    if prompts is not None:
        return _lines(prompts)
    if prompt == "-" or (prompt_file is not None and str(prompt_file) == "-"):
        return [Prompt(_not_empty(_stdin(), "standard input"))]
    if prompt_file is not None:
        return [Prompt(_not_empty(_read(prompt_file), str(prompt_file)))]
    if prompt is not None:
        return [Prompt(_not_empty(checked(prompt, "--prompt"), "--prompt"))]
    if ask_stdin and _is_piped():
        console.say("reading the prompt from standard input")
        return [Prompt(text)] if (text := _stdin()) else None
    return None


def _not_empty(text: str, where: str) -> str:
    if not text:
        raise UserError(
            f"the prompt from {where} is empty",
            "give some text, or leave the option out to use the model's default prompt",
        )
    return text


def _read(path: Path) -> str:
    hint = "to read a pipe, use - for standard input"
    return foreign_files.decoded(foreign_files.read_bytes(path, LARGEST, hint), str(path))


def _lines(path: Path) -> list[Prompt]:
    lines = foreign_files.lines(_stdin() if str(path) == "-" else _read(path))
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        text = _json_string(line, where) if path.suffix == ".jsonl" else line
        found.append(Prompt(text, where))
    if not found:
        raise UserError(f"{path} contains no prompt", "write one prompt per line")
    return found


def _json_string(line: str, where: str) -> str:
    try:
        value = parsing.parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("prompt")
    if not isinstance(value, str):
        raise UserError(
            f"{where} contains no prompt",
            'each line must be a JSON string or {"prompt": "…"}',
        )
    return _not_empty(checked(value, where), where)


def _stdin() -> str:
    try:
        data = sys.stdin.buffer.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read standard input: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UserError(f"standard input has more than {LARGEST:,} bytes, too many for a prompt")
    return foreign_files.decoded(data, "standard input")


def _is_piped() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
