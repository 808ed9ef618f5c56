"""``nanogpt recipe new`` and ``from-nanogpt``: write recipes that the user can edit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from nanogpt_cli import files
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable, toml_escaped
from nanogpt_cli.run.folder import check_name
from nanogpt_cli.user_input import whole


def new(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Name of the recipe, and thus of its runs.")
    ] = "",
    base: Annotated[
        str, typer.Option("--extends", metavar="RECIPE", help="The recipe to start from: small.")
    ] = "",
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help="A named set, a text file or a folder.")
    ] = "",
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="char, byte, gpt2, bpe:SIZE.")] = "",
    steps: Annotated[int, typer.Option("--steps", min=0, help="Optimizer steps.")] = 0,
    sets: options.Sets = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write; NAME.toml by default."),
    ] = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Write your own recipe: the differences from a shipped one.

    On a terminal it asks for what the options leave open; elsewhere, or with --yes, it keeps the
    values of the recipe it starts from.
    """
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.recipe import writing

    ask = _keep if yes or as_json or not _on_terminal() else _ask
    base = base or ask("recipe to start from", "small", recipe_files.locate)
    given = recipe_files.load(base).recipe
    data = data or ask("data (a named set, a file or a folder)", given.data.name, _data)
    data, kind = _data(data), given.data.tokenizer
    tokenizer = tokenizer or ask("tokenizer (char, byte, gpt2, bpe:SIZE)", kind, _tokenizer(data))
    _tokenizer(data)(tokenizer)
    steps = steps or int(ask("steps", str(given.train.max_steps), _positive))
    name = name or (out.stem if out else "") or ask("name", _free_name(data, base), check_name)
    path = out or Path(f"{check_name(name)}.toml")
    _refuse_to_overwrite(path)
    wanted: dict[str, int | str] = {
        "data.name": data, "data.tokenizer": tokenizer, "train.max_steps": steps,
    }  # fmt: skip
    text = writing.derived(base, wanted, sets or [], folder=path.parent)
    _write(path, text, [], f"nanogpt train {path}", as_json)


def from_nanogpt(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A file of nanoGPT's config/.")],
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--KEY=VALUE]...", help="nanoGPT's own flags, after the file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write; stdout by default."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Convert one of nanoGPT's config files to a recipe.

    The file is parsed, never executed. Each line of the recipe names the setting it comes from;
    settings without an equivalent are listed on stderr.
    """
    from nanogpt_cli.interop import nanogpt_config, nanogpt_recipe

    try:
        made = nanogpt_recipe.convert(nanogpt_config.read(config, flags or []))
        made.recipe()
    except UserError as error:
        raise UserError(f"{config}: {error.message}", error.hint) from None
    text = made.to_toml(f"nanoGPT's {printable(config.name, keep='')}")
    for note in made.notes:
        console.say(f"note: {note}")
    if out:
        _refuse_to_overwrite(out)
    file = out or Path(f"{config.stem}.toml")
    command = made.command.replace("NAME", str(file))
    if not (out or as_json):
        console.write(sys.stdout, toml_escaped(text, sys.stdout.encoding))
        words = " ".join(["nanogpt recipe from-nanogpt", str(config), *(flags or [])])
        command = f"{words} --out {file}"
    _write(out, text, made.notes, command, as_json)


def _write(path: Path | None, text: str, notes: list[str], command: str, as_json: bool) -> None:
    if path:
        with files.readable_os_errors("write the recipe", path):
            files.write_text(path, text)
    if as_json:
        written = str(path) if path else None
        console.emit_json({"file": written, "toml": text, "notes": notes, "next": command})
    elif path:
        console.say(f"wrote {path}")
    console.next_command(command)


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already", "choose another name, or --out FILE")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(question: str, default: str, check: Callable[[str], object]) -> str:
    """Ask until the answer is valid; Enter takes the default in brackets."""
    while True:
        answer = str(typer.prompt(question, default=default, err=True)).strip()
        try:
            check(answer)
        except UserError as error:
            console.say(f"{error.message}" + (f" ({error.hint})" if error.hint else ""))
        else:
            return answer


def _keep(_: str, default: str, __: Callable[[str], object]) -> str:
    return default


def _data(text: str) -> str:
    """Check that ``text`` is a set that ``prepare`` can make, or a prepared one."""
    from nanogpt_cli.text import catalogue, tokens

    if catalogue.find(text) or tokens.is_prepared(Path(text)):
        return text
    if text != "-" and Path(text).exists():
        return text
    raise catalogue.unknown(text)


def _tokenizer(data: str) -> Callable[[str], object]:
    from nanogpt_cli.text import request

    return lambda kind: request.checked(request.Request((data,), tokenizer=kind))


def _positive(text: str) -> int:
    number = whole(text)
    if not number:
        raise UserError(f"{text!r} is not a number of steps")
    return number


def _free_name(data: str, base: str) -> str:
    """A name such as ``notes-small`` for notes.txt, with a number if that file exists already."""
    stem = f"{Path(data).stem}-{Path(base).stem}"
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-") or "mine"
    number, name = 1, stem
    while Path(f"{name}.toml").exists():
        number += 1
        name = f"{stem}-{number}"
    return name
