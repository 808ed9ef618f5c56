"""The help page of a command: plain lines in the style of the front page, without boxes.

Rendered by Rich, the longer pages had more than sixty lines. Here each option takes one line, so
that a page fits on one screen, and no library has to be imported to show it.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, TextIO

from nanogpt_cli.cli import console

_WIDEST, _TALLEST = 100, 39  # columns and lines of a page that fits one screen with the prompt
_BOLD = re.compile("\x1b\\[[01]m")
_NAMES = 32  # greatest width of the column of option names; longer names get their own line


def attach(command: Any) -> Any:
    """Make a command and its subcommands show this page on ``--help``; returns the command."""
    command.format_help = lambda ctx, formatter: formatter.write(page(command, ctx))
    find = command.get_help_option
    command.get_help_option = lambda ctx: answering(find(ctx))
    for child in getattr(command, "commands", {}).values():
        attach(child)
    return command


def answering(option: Any) -> Any:
    """Make the option ``--help`` (or None) print the page with bold headings; see ``show``."""

    def answer(ctx: Any, _: Any, asked: bool) -> None:
        if asked and not ctx.resilient_parsing:
            show(ctx.get_help() + "\n", sys.stdout)
            ctx.exit()

    if option is not None:
        option.callback = answer
    return option


def show(text: str, stream: TextIO) -> None:
    """Write a page, without its bold headings if the stream takes no colours."""
    console.write(stream, text if console.coloured(stream) else _BOLD.sub("", text))


def page(command: Any, ctx: Any) -> str:
    """The whole page, ending in a newline."""
    width = terminal_width()
    top = [f"{heading('Usage:')} {_usage(command, ctx)}", ""]
    top += prose(inspect.cleandoc(command.help or ""), width)
    sections = list(_sections(command, ctx))
    lines = [*top, *_body(sections, width, [""], columns)]
    if len(lines) > _TALLEST:
        dense = [*top, "", *_body(sections, width, [], _pairs)]
        lines = dense if len(dense) <= _TALLEST else lines
    return "\n".join(lines) + "\n"


def _body(
    sections: list[tuple[str, list[tuple[str, str]]]],
    width: int,
    gap: list[str],
    layout: Callable[[list[tuple[str, str]], int], list[str]],
) -> list[str]:
    lines: list[str] = []
    for title, rows in sections:
        lines += [*gap, heading(title), *layout(rows, width)]
    return lines


def heading(text: str) -> str:
    """The text in bold if stdout takes colours."""
    return f"\x1b[1m{text}\x1b[0m" if console.coloured(sys.stdout) else text


def _usage(command: Any, ctx: Any) -> str:
    words = [ctx.command_path, "[OPTIONS]"]
    for parameter in _shown(command, "argument"):
        name = _argument_name(parameter)
        many = "..." if parameter.nargs != 1 else ""
        words.append(f"{name}{many}" if parameter.required else f"[{name}]{many}")
    if getattr(command, "commands", None):
        words.append("COMMAND" if command.no_args_is_help else "[COMMAND]")
    return " ".join(words)


def prose(text: str, width: int) -> list[str]:
    """Paragraphs wrapped to the width; those with indented lines stay as they are."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        kept = paragraph.splitlines()
        if not any(line.startswith(" ") for line in kept):
            kept = textwrap.wrap(" ".join(kept), width)
        lines += [*([""] if lines else []), *kept]
    return lines


def _sections(command: Any, ctx: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield (title, rows): arguments, subcommands, then options by panel in order of definition."""
    arguments = [(_argument_name(p), _help(p)) for p in _shown(command, "argument") if p.help]
    if arguments:
        yield "Arguments", arguments
    if children := getattr(command, "commands", None):
        yield "Commands", [(name, c.get_short_help_str(limit=300)) for name, c in children.items()]
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in _shown(command, "option"):
        title = getattr(parameter, "rich_help_panel", None) or "Options"
        panels.setdefault(title, []).append((_option_name(parameter), _help(parameter)))
    help_option = command.get_help_option(ctx)
    if help_option is not None:
        names = ", ".join(sorted(help_option.opts, key=len))
        panels.setdefault("Options", []).append((names, "This page."))
    yield from panels.items()


def _shown(command: Any, kind: str) -> list[Any]:
    return [
        p for p in command.params if p.param_type_name == kind and not getattr(p, "hidden", False)
    ]


def _argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper()).strip("[]")


def _option_name(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=lambda name: not re.match(r"-\w$", name)))
    if parameter.secondary_opts:
        return f"{names}/{', '.join(parameter.secondary_opts)}"
    return names if parameter.is_flag else f"{names} {_value_name(parameter)}"


def _value_name(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    kind = str(parameter.type_descriptor.annotation)
    described = parameter.type_descriptor
    if described.is_choice:
        return "|".join(map(str, described.choices))
    if "int" in kind:
        return "N"
    return "X" if "float" in kind else "FILE" if described.is_path else "TEXT"


def _help(parameter: Any) -> str:
    return " ".join(filter(None, (parameter.help or "", _default(parameter))))


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.show_default is False or value in (None, "", False, [], ()) or value is ...:
        return ""
    if value is True:
        value = parameter.opts[0].lstrip("-")
    elif isinstance(value, float):
        value = f"{value:g}"
    elif isinstance(value, PurePath):
        value = str(value)
    return f"[{value}]" if parameter.help else f"Default: {value}."


def terminal_width() -> int:
    """Width of the page: that of the terminal, up to ``_WIDEST``."""
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def columns(rows: list[tuple[str, str]], width: int) -> list[str]:
    """Lay out rows with names on the left and wrapped help on the right."""
    left = min(_NAMES, max(len(name) for name, _ in rows))
    lines: list[str] = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(20, width - left - 4)) or [""]
        first = f"  {name:<{left}}"
        if len(name) > left:
            lines.append(first)
            first = " " * (left + 2)
        lines.append(f"{first}  {wrapped[0]}".rstrip())
        lines += [" " * (left + 4) + line for line in wrapped[1:]]
    return lines


def _pairs(rows: list[tuple[str, str]], width: int) -> list[str]:
    """Lay out rows in two columns, read downwards, if the section fits; else as ``columns``."""
    middle = -(-len(rows) // 2)
    if len(rows) < 4:
        return columns(rows, width)
    left, right = columns(rows[:middle], 999), columns(rows[middle:], 999)
    needed, room = max(map(len, left)) + 2, width - max(map(len, right))
    if needed > room or len(left) + len(right) > len(rows):
        return columns(rows, width)
    edge = max(needed, min(width // 2, room))
    right += [""] * (middle - len(right))
    return [f"{a:<{edge}}{b}".rstrip() for a, b in zip(left, right, strict=True)]
