"""The walls of the house: who may import whom, asserted in fresh interpreters."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT

import nanogpt_cli

PACKAGE = Path(nanogpt_cli.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "nanogpt_cli.")
    if not module.name.endswith("__main__")
)
TERMINAL = ("typer", "rich", "textual")
# Rooms of torch.
COMPUTING = ("modules", "training", "sampling", "init", "model", "machine")
# Modules of such rooms that commands import to show their help.
LIGHT = ("nanogpt_cli.sampling.settings",)
# Heavy or optional libraries that no module may import at its top level.
HEAVY = ("transformers", "onnx", "onnxruntime", "gguf", "datasets", "matplotlib", "tiktoken")
# Where torch is not imported, which has them itself: what samples the machine.
LATE = (*HEAVY, "psutil", "pynvml")


def room_of(module: str) -> str:
    """The room a module lies in; light ones and the root's modules form rooms of their own."""
    if module in LIGHT:
        return "light"
    if module == f"{PACKAGE.name}.tui.state.view":
        return "view"
    room = module.split(".")[1] if module.count(".") else ""
    return room if (PACKAGE / room).is_dir() and room else "root"


NOT_YET = tuple(
    f"nanogpt_cli.{room}" for room in (*COMPUTING, "text", "interop", "tui") if room != "sampling"
)
# What importing any module of a room must not bring in.
FORBIDDEN = {
    "root": ("torch", "numpy", *TERMINAL, *LATE),
    "run": ("torch", "numpy", *TERMINAL, *LATE),
    "schemes": ("torch", "numpy", *TERMINAL, *LATE),
    "recipe": ("torch", "numpy", *TERMINAL, *LATE),
    "light": ("torch", "numpy", *TERMINAL, *LATE),
    "text": ("torch", *TERMINAL, *LATE),
    "machine": (*TERMINAL, *HEAVY),
    "model": (*TERMINAL, *HEAVY),
    "init": (*TERMINAL, *HEAVY),
    "sampling": (*TERMINAL, *HEAVY),
    "training": (*TERMINAL, *HEAVY),
    "interop": (*TERMINAL, *HEAVY),
    "modules": (*TERMINAL, *HEAVY),
    # A list of topics and its completion need no torch.
    "explain": ("torch", "numpy", *TERMINAL, *LATE),
    "view": ("torch", "typer", "textual", *LATE),
    "tui": ("torch", "typer", *LATE, *(f"nanogpt_cli.{room}" for room in (*COMPUTING, "text"))),
    # Their help must come at once: what they need is imported when they run. (Of ``sampling``
    # they import a light module; the others would bring torch.)
    "cli": ("torch", "numpy", "textual", *LATE, *NOT_YET, "nanogpt_cli.bench"),
    "bench": ("torch", "numpy", "textual", *LATE, *NOT_YET),
}


def rooms() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for module in MODULES:
        found.setdefault(room_of(module), []).append(module)
    return found


def alike() -> dict[tuple[str, ...], list[str]]:
    """Rooms by what they must not bring in."""
    found: dict[tuple[str, ...], list[str]] = {}
    for room in sorted(rooms()):
        found.setdefault(FORBIDDEN[room], []).append(room)
    return found


# One interpreter for all modules of rooms with the same walls: importing more only makes the check
# stricter, and starting Python with torch for every module would take minutes.
@pytest.mark.parametrize(("banned", "names"), alike().items(), ids=map(" ".join, alike().values()))
def test_importing_a_room_keeps_to_its_walls(banned: tuple[str, ...], names: list[str]) -> None:
    modules = [module for name in names for module in rooms()[name]]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    leaked = [b for b in {banned!r} if b in sys.modules]\n"
        "    assert not leaked, f'importing {name} brought in {leaked}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", [*COMPUTING, "recipe", "run", "schemes", "text", "tui"])
def test_rooms_neither_print_nor_exit_nor_read_arguments(room: str) -> None:
    found = []
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("print", "exit", "quit", "input"):
                    found.append(f"{path.name}:{node.lineno} {node.func.id}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "sys.argv"):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def test_nobody_imports_the_command_line() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "bench", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found += [
                f"{path.name}: {n}"
                for n in names
                if n.startswith(("nanogpt_cli.cli", "nanogpt_cli.bench"))
            ]
    assert found == []


def test_no_pickle_is_loaded_without_a_restricted_reader() -> None:
    """Loading goes through ``safe_pickle`` and ``safe_torch``; both refuse all but plain values."""
    banned = re.compile(
        r"\bpickle\.(?:load|dump)s?\(|weights_only=False|(?<!safe_)\btorch\.(?:load|save)\("
    )
    # nanoGPT's own two files are pickles: its export is the one place that writes any.
    allowed = {"nanogpt.py": {"pickle.dumps(", "torch.save("}, "safe_torch.py": {"torch.load("}}
    found = []
    for path in PACKAGE.rglob("*.py"):
        words = set(banned.findall(path.read_text(encoding="utf-8")))
        found += [f"{path.name}: {word}" for word in words - allowed.get(path.name, set())]
    assert found == []
