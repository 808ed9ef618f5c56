"""A few lines of TOML that correct what was found in a module.

::

    blocks = "model.layers"            # a list's path, or patterns of the blocks' paths

    [roles]                            # parameter = role
    "*.mixer.in_proj.weight" = "fc"

    [writes]                           # module that computes what is added = kind
    "*.mixer" = "attn"

Patterns are those of a shell: ``*`` stands for any characters, dots included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from nanogpt_cli import foreign_files, parsing
from nanogpt_cli.errors import UserError, naming, nearest
from nanogpt_cli.modules.anatomy import ROLES
from nanogpt_cli.printable import printable

KINDS = ("embed", "attn", "mlp", "both", "other")
_KEYS = ("blocks", "roles", "writes")


@dataclass(frozen=True)
class Override:
    """Corrections of an anatomy.

    Attributes:
        blocks: patterns of the blocks' paths; empty to find them.
        roles: roles by pattern of a parameter's name.
        writes: kinds by pattern of the path of the module that computes what is added.
    """

    blocks: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    writes: Mapping[str, str] = field(default_factory=dict)

    def role(self, parameter: str) -> str:
        """The role that is set for a parameter; empty if none is."""
        return _first_match(self.roles, parameter)

    def kind(self, path: str) -> str:
        """The kind that is set for what a module adds; empty if none is."""
        return _first_match(self.writes, path)

    def is_block(self, path: str) -> bool:
        """Whether a module is one of the blocks that are set."""
        return any(fnmatchcase(path, pattern) for pattern in self.blocks)

    def check(self, module: nn.Module) -> Override:
        """The same, with the paths of blocks in place of patterns and of lists.

        Raises:
            UserError: a pattern matches nothing in the module.
        """
        modules = dict(module.named_modules())
        _check_matches("blocks", self.blocks, modules)
        _check_matches("roles", self.roles, [name for name, _ in module.named_parameters()])
        _check_matches("writes", self.writes, modules)
        blocks: list[str] = []
        for path, child in modules.items():
            if self.is_block(path):
                members = isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict)
                blocks += (
                    [f"{path}.{name}" for name, _ in child.named_children()] if members else [path]
                )
        return Override(tuple(blocks), self.roles, self.writes)


def _first_match(table: Mapping[str, str], name: str) -> str:
    return next((value for key, value in table.items() if fnmatchcase(name, key)), "")


def _check_matches(key: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            what = "parameter" if key == "roles" else "module"
            close = nearest(pattern.lstrip("*."), known)
            hint = f"did you mean {_shown(close)}?" if close else f"no {what} is called so"
            raise UserError(f"{key}: no {what} of the model matches {_shown(pattern)}", hint)


def _shown(text: str) -> str:
    return printable(f'"{text:.120}"', keep="")


def read_override(path: Path) -> Override:
    """The corrections in a file.

    Raises:
        UserError: it cannot be read, is no TOML, or has an unknown key, role or kind.
    """
    text = foreign_files.read_text(path, parsing.LARGEST_RECIPE)
    with naming(path):
        return parse_override(text)


def parse_override(text: str) -> Override:
    """The corrections in a TOML text.

    Raises:
        UserError: it is no TOML, or has an unknown key, role or kind.
    """
    try:
        tables = parsing.parse_toml(text)
    except ValueError as error:
        raise UserError(f"it is not TOML: {error}") from error
    for key in tables:
        if key not in _KEYS:
            raise UserError(f"unknown key {_shown(key)}", f"known: {', '.join(_KEYS)}")
    blocks = tables.get("blocks", [])
    blocks = [blocks] if isinstance(blocks, str) else blocks
    if not isinstance(blocks, list) or not all(isinstance(path, str) for path in blocks):
        raise UserError("blocks must be a path, or a list of paths", 'such as "model.layers"')
    roles = _choices(tables, "roles", ROLES)
    return Override(tuple(blocks), roles, _choices(tables, "writes", KINDS))


def _choices(tables: Mapping[str, Any], key: str, known: tuple[str, ...]) -> dict[str, str]:
    """A table of patterns, each with one of the known words."""
    table = tables.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{key} must be a table", f'write [{key}], then "*.name" = "{known[3]}"')
    for pattern, word in table.items():
        if isinstance(word, dict):
            raise UserError(
                f"{key}.{_shown(pattern)} is a table", "put names with dots in quotation marks"
            )
        if word not in known:
            close = nearest(word, known) if isinstance(word, str) else ""
            hint = f"did you mean {close}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"{key}.{_shown(pattern)}: unknown {_shown(str(word))}", hint)
    return dict(table)
