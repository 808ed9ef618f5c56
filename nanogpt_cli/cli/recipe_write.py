"""``nanogpt recipe new`` and ``from-nanogpt``: write recipes that the user can edit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import files, shell
from nanogpt_cli.cli import chosen_data, console, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable, toml_escaped
from nanogpt_cli.run.folder import check_name
from nanogpt_cli.user_input import expanded, whole

if TYPE_CHECKING:
    from nanogpt_cli.recipe import Recipe


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
    wanted: dict[str, Any] = {}
    if isinstance(given.data.name, str):  # a recipe that names several texts keeps them
        check = chosen_data.checked
        data = check(data or ask("data (a named set, a file or a folder)", given.data.name, check))
        wanted = _named(data)
    elif data:
        wanted = _named(chosen_data.checked(data))
    kind = wanted.pop("data.tokenizer", given.data.tokenizer)
    usable = _tokenizer(data)
    tokenizer = tokenizer or ask("tokenizer (char, byte, gpt2, bpe:SIZE)", kind, usable)
    usable(tokenizer)
    steps = steps or int(ask("steps", str(given.train.max_steps), _positive))
    stem = Path(data or base).stem
    name = name or (out.stem if out else "") or ask("name", _free_name(stem, base), _named_well)
    path = out or Path(f"{_named_well(name)}.toml")
    _refuse_to_overwrite(path)
    wanted |= {"data.tokenizer": tokenizer, "train.max_steps": steps}
    if given.optim.warmup_steps > steps:
        wanted["optim.warmup_steps"] = steps // 10
    wanted |= _prompt(writing.merged(base, wanted, sets or []))
    text = writing.derived(base, wanted, sets or [], folder=path.parent)
    _write(path, text, [], shell.command("train", path), as_json)


def from_nanogpt(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A file of nanoGPT's config/.")],
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="--KEY=VALUE", help="nanoGPT's own flags, after the file."),
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
        named = "" if str(config) in error.message else f"{config}: "
        raise UserError(named + error.message, error.hint) from None
    text = made.to_toml(f"nanoGPT's {printable(config.name, keep='')}")
    for note in made.notes:
        console.say(f"note: {note}")
    if out:
        _refuse_to_overwrite(out)
    file = out or Path(f"{_unused(config.stem)}.toml")
    start = ["--from", made.source] if made.source else []
    command = shell.command("train", file, *start)
    if not (out or as_json):
        console.write(sys.stdout, toml_escaped(text, sys.stdout.encoding))
        command = shell.command("recipe", "from-nanogpt", config, *(flags or []), "--out", file)
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


def _named(data: str) -> dict[str, Any]:
    """The keys of a recipe for this text, with the options with which it was prepared last."""
    return {"data.name": data} | {f"data.{k}": v for k, v in chosen_data.as_prepared(data).items()}


def _prompt(recipe: Recipe) -> dict[str, str]:
    """The prompt of samples, from the text itself, for a recipe that has none."""
    from nanogpt_cli.text import beginning, prepare, request, tokens

    if recipe.sample.prompt:
        return {}
    data = recipe.data.model_dump()
    if folder := prepare.ready(data):
        found = beginning.of(tokens.open_data(folder), max(1, recipe.model.block_size // 2))
    else:
        found = beginning.of_request(request.checked(request.of_recipe(data)))
    return {"sample.prompt": found} if found else {}


def _tokenizer(data: str) -> Callable[[str], object]:
    from nanogpt_cli.text import request, tokens

    if not data or tokens.is_prepared(expanded(data)):
        return lambda _: None  # a prepared set has its tokenizer
    return lambda kind: request.checked(request.Request((data,), tokenizer=kind))


def _named_well(name: str) -> str:
    return check_name(name, how="")


def _positive(text: str) -> int:
    number = whole(text)
    if not number:
        raise UserError(f"{text!r} is not a number of steps")
    return number


def _free_name(stem: str, base: str) -> str:
    """A name such as ``notes-small`` for notes.txt, with a number if that file exists already."""
    stem = f"{stem}-{Path(base).stem}"
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-") or "mine"
    return _unused(stem)


def _unused(stem: str) -> str:
    """``stem``, with a number if there is such a recipe here already."""
    number, name = 1, stem
    while Path(f"{name}.toml").exists():
        number += 1
        name = f"{stem}-{number}"
    return name
