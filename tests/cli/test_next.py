"""Every command that a command proposes, after "next:" or in a hint, works when it is typed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import smallest
from programs import nanogpt

import nanogpt_cli
from nanogpt_cli.cli import lazy, prepare_view
from nanogpt_cli.recipe import files as recipe_files

pytestmark = pytest.mark.timeout(300)

PACKAGE = Path(nanogpt_cli.__file__).parent
TEXT = "".join(f"Zeile {i} meiner Notizen: {i * 7 % 13} Äpfel und Birnen.\n" for i in range(120))
RECIPE = smallest.recipe(data={"name": "meine Notizen.txt"}, sample={"max_new_tokens": 4})
# Training for real, in as few steps as show that it begins.
SHORT = ("--set", "train.max_steps=1", "--set", "optim.warmup_steps=0", "--set", "stats.budget=0")
NARROW = ("--set", "model.n_layer=1", "--set", "model.n_head=1", "--set", "model.n_embd=8")
# What the program is asked, and with which exit code it answers. {home} has a space as well.
WALK: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("prepare", "meine Notizen.txt", "-t", "byte")),
    (0, ("prepare", "kurz & bündig.txt", "-t", "char", "--val-fraction", "0.3")),
    (0, ("prepare", "2024", "-t", "byte", "--out", "./~mein Satz")),
    (0, ("data",)),
    (0, ("data", "inspect", "./~mein Satz")),
    (2, ("prepare", "./~mein Satz")),
    (0, ("recipe", "show", "mein Rezept.toml")),
    (0, ("recipe", "check", "mein Rezept.toml", "--set", "optim.lr=0.01")),
    (0, ("recipe", "new", "Größe 2", "--extends", "mein Rezept.toml", "--set", "optim.lr=0.02")),
    (0, ("recipe", "diff", "mein Rezept.toml", "debug")),
    (0, ("recipe", "from-nanogpt", "von nanoGPT.py", "--learning_rate=0.1")),
    (0, ("recipe", "from-nanogpt", "mein Rezept.py")),
    (2, ("recipe", "new", "a/b", "--yes")),
    (2, ("train", "meine Notizen.txt")),
    (0, ("prepare", "ohne Prüfung.txt", "-t", "byte", "--val-fraction", "0")),
    (0, ("plan", "mein Rezept.toml", "--flops", "1e9", "--out", "andere Läufe")),
    (0, ("verify-resume", "mein Rezept.toml", "--steps", "2", "--set", "optim.lr=0.01")),
    (0, ("train", "mein Rezept.toml", "--set", "run.name=Lauf 1 größer")),
    (0, ("train", "mein Rezept.toml", "--out", "andere Läufe", "--seed", "3")),
    (0, ("train", "mein Rezept.toml", "--lr-find", "--from", "Lauf 1 größer")),
    (2, ("train", "mein Rezept.toml", "--from", "Lauf 1 größer", "--set", "data.name=andere.txt")),
    (2, ("train", "Lauf 1 größer", "--resume", "--set", "data.name=andere.txt")),
    (2, ("train", "mein Rezept.toml", "--from", "Lauf 1 größer", "--set", "model.n_embd=16")),
    (2, ("train",)),
    (2, ("train", "--resum")),
    (0, ("runs",)),
    (0, ("runs", "--out", "andere Läufe")),
    (0, ("runs", "diff", "Lauf 1 größer", "andere Läufe/mein Rezept")),
    (0, ("runs", "csv", "Lauf 1 größer")),
    (0, ("watch", "Lauf 1 größer", "--once")),
    (0, ("sample", "Lauf 1 größer", "-n", "2")),
    (0, ("sample", "mein Rezept", "--out", "andere Läufe", "-n", "2", "--checkpoint", "last")),
    (0, ("eval", "mein Rezept", "--out", "andere Läufe", "--checkpoint", "2")),
    (2, ("eval", "Lauf 1 größer", "--data", "andere.txt")),
    (2, ("eval", "Lauf 1 größer", "--data", "fremde.txt")),
    (0, ("why", "Lauf 1 größer")),
    (0, ("why", "Lauf 1 größer", "2", "--budget", "10s")),
    (0, ("replay", "Lauf 1 größer", "1")),
    (2, ("replay", "Lauf 1 größer")),
    (0, ("export", "Lauf 1 größer", "--to", "hf", "--no-verify", "--out", "exportiert & fertig")),
    (0, ("import", "exportiert & fertig/hf", "--name", "wieder da")),
    (2, ("import", "runs/Lauf 1 größer")),
    (2, ("watch", "nirgends", "--out", "leere Läufe")),
    (2, ("sample", "--out", "leere Läufe")),
    (2, ("cache", "clear", "nichts")),
    (0, ("cache", "list")),
    (0, ("recipes",)),
    (0, ("docs", "recipes")),
)  # fmt: skip


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asset_cache: Callable[[str], Path]
) -> Path:
    """A folder with a space and umlauts in its name, which holds texts and recipes."""
    home = tmp_path / "Größe und Länge"
    home.mkdir()
    monkeypatch.setenv("NANOGPT_HOME", str(tmp_path / "mein Cache"))
    asset_cache("tinyshakespeare")
    (home / "meine Notizen.txt").write_text(TEXT, encoding="utf-8")
    (home / "kurz & bündig.txt").write_text("Äpfel. " * 9, encoding="utf-8")
    (home / "ohne Prüfung.txt").write_text(TEXT, encoding="utf-8")
    (home / "2024").write_text(TEXT, encoding="utf-8")
    (home / "andere.txt").write_text(TEXT.replace("Äpfel", "Birnen"), encoding="utf-8")
    (home / "fremde.txt").write_text(TEXT.replace("Z", "S"), encoding="utf-8")
    (home / "mein Rezept.toml").write_text(RECIPE, encoding="utf-8")
    config = "n_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 8\n"
    for name in ("von nanoGPT.py", "mein Rezept.py"):
        (home / name).write_text(config)
    monkeypatch.chdir(home)
    return home


def answer(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> tuple[int, str]:
    """The exit code of the program and what it wrote to stderr."""
    return nanogpt(*words), capsys.readouterr().err


def proposed(said: str) -> Iterator[str]:
    """The commands of this program in a commentary."""
    for line in said.splitlines():
        if line.startswith("next: nanogpt"):
            yield line.removeprefix("next: ")
        elif line.startswith("hint: nanogpt "):
            yield line.removeprefix("hint: ")
        elif line.startswith("hint: "):
            yield from re.findall(r"`(nanogpt [^`]*)`", line)


def test_every_proposed_command_works_as_printed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origins: dict[str, tuple[str, ...]] = {}
    wrong = []
    for code, words in WALK:
        found, said = answer(capsys, words)
        if found != code or not said.splitlines()[-1].startswith(("next: ", "hint: ")):
            wrong.append(f"{words}: exit code {found}: {said}")
        for command in proposed(said):
            origins.setdefault(command, words)
    for command, words in origins.items():
        typed = tuple(shlex.split(command)[1:])
        if typed[0] == "train" and not {"--lr-find", "--help"} & {*typed}:
            typed += SHORT + (NARROW if typed[1] in ("small", "debug") else ())
        if "--interactive" in typed or typed[:2] in (("recipe", "new"), ("cache", "clear")):
            continue  # they ask a question
        found, said = answer(capsys, typed)
        if found != 0:
            wrong.append(f"{command} (after {words}): exit code {found}: {said}")
    assert not wrong, "\n".join(wrong)
    assert len(origins) > 25
    assert place.is_dir()


def test_a_short_text_gets_a_context_that_fits() -> None:
    assert recipe_files.load("small").recipe.model.block_size == prepare_view._CONTEXT


# What writes hints and "next:" lines.
SPEAKING = ("UserError", "CheckpointError", "next_command", "_complain")


def literals(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Line, text and whether values are put in, of each string that is an argument of a call."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.lineno, argument.value, False
            elif isinstance(argument, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in argument.values]
                yield argument.lineno, "".join(map(str, parts)), True


def hints() -> Iterator[tuple[str, str]]:
    """Place and text of each hint and "next:" line that stands in the source as a string."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = getattr(call, "func", None)
            name = getattr(function, "attr", getattr(function, "id", ""))
            if isinstance(call, ast.Call) and name in SPEAKING:
                for line, text, _ in literals(call):
                    yield f"{path.relative_to(PACKAGE)}:{line}", text


def test_commands_in_hints_are_whole_and_made_by_the_helper() -> None:
    """A command with values must be quoted by ``shell``; a placeholder cannot be typed."""
    wrong = []
    for place, text in hints():
        for command in re.findall(r"`(nanogpt [^`]*)`", text) + re.findall(r"^nanogpt .*", text):
            words = command.split()
            known = words[1] in lazy.TABLE or words[1].startswith("-")
            if "{}" in command or not known or re.search(r"\b[A-Z]{2,}\b", command):
                wrong.append(f"{place}: {command}")
        bare = re.sub(r"`[^`]*`|^nanogpt .*", "", text)
        if re.search(r"nanogpt (train|sample|watch|eval|replay) ", bare):
            wrong.append(f"{place}: a command without backticks: {text}")
    assert not wrong, "\n".join(wrong)
