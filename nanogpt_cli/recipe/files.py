"""Reading recipes: finding the file, ``extends``, ``--set``, and the origin of keys."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from nanogpt_cli import foreign_files, parsing, places, shell
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.printable import checked
from nanogpt_cli.recipe import problems
from nanogpt_cli.recipe.effects import without_effect
from nanogpt_cli.recipe.sections import Recipe

_HEADER = re.compile(r"^#\s*(what|machine|minutes|loss):\s*(.+)$", re.IGNORECASE)
_SECTION_LINE = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY_LINE = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")


@dataclass(frozen=True)
class Loaded:
    """A recipe with the origin of each key that is not a default.

    Attributes:
        recipe: the validated recipe.
        origins: ``"optim.lr"`` -> ``"small.toml:12"`` or ``"--set"``.
        notes: sentences for the user, e.g. about a key that was given in another section.
    """

    recipe: Recipe
    origins: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """The description of a recipe from its leading comment."""

    name: str
    path: Path
    what: str = ""
    machine: str = ""
    minutes: str = ""
    loss: str = ""


@dataclass
class _Draft:
    """Raw values while files and overrides are merged."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self, section: str) -> dict[str, Any] | None:
        """A section to write into; None where a file has something else in its place.

        Nothing is written over that: the message about it shall name its line.
        """
        found = self.values.setdefault(section, {})
        return found if isinstance(found, dict) else None


def shipped() -> list[Header]:
    """The shipped recipes, by name."""
    return [read_header(path) for path in sorted(places.shipped_recipes().glob("*.toml"))]


def read_header(path: Path) -> Header:
    """The ``# what: …``, ``# machine: …``, ``# minutes: …`` and ``# loss: …`` lines of a recipe."""
    found = {}
    for line in foreign_files.lines(foreign_files.read_text(path)):
        if line.strip() and not line.startswith("#"):
            break
        if match := _HEADER.match(line):
            found[match.group(1).lower()] = match.group(2).strip()
    return Header(name=path.stem, path=path, **found)


def locate(name: str | Path) -> Path:
    """The file of a recipe given as a path or as the name of a shipped one.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    names = [header.name for header in shipped()]
    if str(name) in names:
        return places.shipped_recipes() / f"{name}.toml"
    if path.is_dir():
        inside = path / "recipe.toml"  # that of a run
        example = f", such as {inside}" if inside.is_file() else ""
        raise UserError(f"{path} is a folder, not a recipe", f"name a .toml file in it{example}")
    if foreign_files.present(path):
        return path  # reading it says what it is
    close = path.stem if path.stem in names else nearest(path.stem, names)
    hint = f"did you mean the shipped recipe: {close}? " if close else ""
    raise UserError(f"no recipe {str(name)!r}", f"{hint}shipped: {', '.join(names)}")


def load(name: str | Path, sets: Sequence[str] = ()) -> Loaded:
    """Read, merge and validate a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        sets: overrides ``SECTION.KEY=VALUE`` with the value in TOML; bare words are strings.

    Raises:
        UserError: the recipe is invalid; one message lists every problem with file and line.
    """
    path = locate(name)
    draft = _read(path, ())
    if (run := draft.table("run")) is not None:
        run.setdefault("name", path.stem)
    before = _data_and_prompt(draft)
    _apply_sets(draft, sets)
    _forget_prompt(draft, before)
    return _validate(draft, str(path))


def from_values(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain values, with the same errors as ``load``."""
    return _validate(_Draft(values=dict(values)), source).recipe


def overridden(values: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Plain values of a recipe after overrides as in ``load``; not validated yet."""
    draft = _Draft(values=copy.deepcopy(dict(values)))
    _apply_sets(draft, sets)
    return draft.values


def load_resolved(path: Path) -> Recipe:
    """The recipe of a run folder."""
    return _validate(_read(path, ()), str(path)).recipe


def to_toml(recipe: Recipe) -> str:
    """Every key of a recipe with its resolved value, as TOML."""
    values = recipe.model_dump(mode="json")
    if not values["init"]:
        values.pop("init")
    return tomli_w.dumps(values)


def _read(path: Path, chain: tuple[Path, ...]) -> _Draft:
    foreign_files.check(path)  # resolve() would fail on a link that leads back to itself
    if path.resolve() in chain:
        loop = " -> ".join(str(p.name) for p in (*chain, path))
        raise UserError(f"{path}: extends goes in a circle: {loop}")
    values, lines = _parse(path)
    base = values.pop("extends", None)
    draft = _Draft()
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: extends must be a string, the name of another recipe")
        beside = path.parent / base
        parent = beside if foreign_files.present(beside) and not beside.is_dir() else None
        try:
            parent = parent or locate(base)
        except UserError as error:
            raise UserError(f"{path}: extends = {base!r}: {error.message}", error.hint) from None
        draft = _read(parent, (*chain, path.resolve()))
    before = _data_and_prompt(draft)
    for section, content in values.items():
        if section == "init" or not isinstance(content, dict):
            draft.values[section] = content
            draft.origins[section] = f"{path}:{lines.get(section, 1)}"
            continue
        if (target := draft.table(section)) is None:
            continue
        for key, value in content.items():
            target[key] = value
            where = lines.get(f"{section}.{key}", lines.get(section, 1))
            draft.origins[f"{section}.{key}"] = f"{path}:{where}"
    _forget_prompt(draft, before)
    model = values.get("model")
    _settle_init(draft, "init" in values, isinstance(model, dict) and "init" in model)
    return draft


def _data_and_prompt(draft: _Draft) -> tuple[Any, Any]:
    """``data.name``, and ``sample.prompt`` with where it was set; ``None`` for what is not set."""
    data, sample = (draft.table(section) or {} for section in ("data", "sample"))
    prompt = sample.get("prompt")
    return data.get("name"), prompt and (prompt, draft.origins.get("sample.prompt"))


def _forget_prompt(draft: _Draft, before: tuple[Any, Any]) -> None:
    """Drop a prompt that was written for other data: "ROMEO:" begins no text but Shakespeare's.

    Args:
        draft: after a recipe or overrides were merged into it.
        before: ``_data_and_prompt`` before that.
    """
    data, prompt = _data_and_prompt(draft)
    if prompt and prompt == before[1] and data != before[0]:
        (draft.table("sample") or {}).pop("prompt", None)
        draft.origins.pop("sample.prompt", None)


def _settle_init(draft: _Draft, scheme: bool, choice: bool) -> None:
    """Keep the table ``[init]`` and the key ``model.init`` together, after one file or override.

    A table alone chooses itself; the name of another scheme alone replaces an inherited table.

    Args:
        scheme: the file or override has the table.
        choice: it has the key.
    """
    if scheme == choice or (model := draft.table("model")) is None:
        return
    if scheme:
        model["init"] = "custom"
        draft.origins["model.init"] = draft.origins["init"]
    elif model["init"] != "custom" and draft.values.pop("init", None):
        where = draft.origins.pop("init", "the recipe")  # plain values have no origins
        draft.notes.append(f"model.init = {model['init']!r} replaces the table [init] of {where}")


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a TOML file and the line of each key."""
    try:
        text = foreign_files.read_text(path, parsing.LARGEST_RECIPE)
        return parsing.parse_toml(text), _line_numbers(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}", _own_text(path)) from None
    except UserError as error:
        if hint := _own_text(path):
            raise UserError(error.message, hint) from None
        raise


def _own_text(path: Path) -> str:
    """What to type who named a text where a recipe belongs; "" for a recipe, damaged or not."""
    if path.suffix.lower() in ("", ".toml") or not path.is_file():
        return ""
    recipe = shell.hint("recipe", "new", "--data", path)
    return f"a recipe is a .toml file; to train on the text of {path}, write one: {recipe}"


def _line_numbers(text: str) -> dict[str, int]:
    """The line (1-based) of each ``section.key``, for the plain tables that recipes consist of."""
    section = ""
    found: dict[str, int] = {}
    for number, line in enumerate(foreign_files.lines(text), 1):
        if match := _SECTION_LINE.match(line):
            section = key = match.group(1)
        elif match := _KEY_LINE.match(line):
            key = f"{section}.{match.group(1)}" if section else match.group(1)
        else:
            continue
        parts = key.split(".")  # a dotted key stands for the tables it leads through as well
        for end in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:end]), number)
    return found


def _apply_sets(draft: _Draft, sets: Sequence[str]) -> None:
    for text in sets:
        _apply_set(draft, checked(text, "--set"))


def _apply_set(draft: _Draft, text: str) -> None:
    path, separator, literal = text.partition("=")
    path = path.strip()
    if not separator or not path:
        raise UserError(f"--set {text!r} has no value", "write it as --set SECTION.KEY=VALUE")
    section, _, key = path.rpartition(".")
    own_scheme = path.startswith("init.")  # its tables and keys are those of schemes.toml
    if not own_scheme and key not in problems.keys().get(section, ()):
        section = _home_of(key, section, draft) or section
    if section == "":
        raise UserError(f"--set {path}: unknown key", problems.suggest(path))
    content: Any = draft.values
    for name in section.split("."):
        if not isinstance(content := content.setdefault(name, {}), dict):
            return  # the message about it shall name its line
    content[key] = _toml_value(path, literal.strip())
    draft.origins["init" if own_scheme else f"{section}.{key}"] = "--set"
    _settle_init(draft, own_scheme, f"{section}.{key}" == "model.init")


def _home_of(key: str, given: str, draft: _Draft) -> str:
    """The only section that has ``key``, so that ``--set lr=…`` and ``train.lr`` find it."""
    homes = [section for section, known in problems.keys().items() if key in known]
    if len(homes) != 1:
        return ""
    if given:
        draft.notes.append(f"--set {given}.{key}: the key is {homes[0]}.{key}")
    return homes[0]


def _toml_value(key: str, literal: str) -> Any:
    try:
        return parsing.parse_toml(f"value = {literal}")["value"]
    except tomllib.TOMLDecodeError:
        return literal
    except ValueError as error:
        raise UserError(f"--set {key} = {literal:.40}…: {error}") from None


def _validate(draft: _Draft, source: str) -> Loaded:
    try:
        recipe = Recipe.model_validate(draft.values)
    except ValidationError as error:
        found = [
            line
            for item in problems.joined(error.errors())
            for line in problems.describe(item, draft.origins, source)
        ]
        count = f"{len(found)} problems" if len(found) > 1 else "a problem"
        listing = "\n".join(f"  {problem}" for problem in found)
        by_hand = any(problem.startswith("--set") for problem in found)
        hint = "" if by_hand else _other_version(Path(source))
        raise UserError(f"{source} has {count}:\n{listing}", hint) from None
    return Loaded(recipe, dict(draft.origins), (*draft.notes, *without_effect(recipe)))


def _other_version(path: Path) -> str:
    """The hint for the recipe of a run, which nobody wrote by hand."""
    if not path.with_name("events.jsonl").is_file():
        return ""
    return "another version of nanogpt-cli made this run; remove or correct the keys named above"
