"""What the README and the manual promise is what the project does."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanogpt_cli import places
from nanogpt_cli.cli import lazy
from nanogpt_cli.cli.recipes import markdown
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.events import Layers
from nanogpt_cli.run.follow import EventReader

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = places.docs_folder()
PAGES = sorted(MANUAL.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def page(topic: str) -> str:
    return (MANUAL / f"{topic}.md").read_text(encoding="utf-8")


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize(("name", "most"), [("README.md", 180), ("CONTRIBUTING.md", 150)])
def test_what_is_read_first_stays_short(name: str, most: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_the_readme_names_every_page_and_shows_every_command() -> None:
    for path in PAGES:
        assert f"[{path.stem}](nanogpt_cli/docs/{path.name})" in README
    assert {line.split()[1] for line, _ in examples(README)} == set(lazy.TABLE)


def test_the_recipe_table_is_the_one_the_program_prints() -> None:
    assert markdown(recipe_files.shipped()) in page("recipes")


def test_ci_runs_the_readme_commands_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.findall(r"^```\n(pip install .*?)\n```$", README, flags=re.MULTILINE)
    assert found[0] == "pip install . && nanogpt train recipes/small.toml"
    install, test = found[1].split(" && ")
    assert install.removeprefix("pip install ") in script
    assert test == "pytest"
    assert re.search(r"^pytest$", script, flags=re.MULTILINE)


def examples(text: str) -> Iterator[tuple[str, str]]:
    """(command of this program, what is shown after it) of the examples in a text.

    Examples are lines ``$ nanogpt …`` in blocks, and the first cells of tables.
    """
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = example.partition("\n")
            parts = (part.strip() for part in re.split(r"&&|;", line))
            yield from ((part, output) for part in parts if part.startswith("nanogpt "))
    for code in re.findall(r"^\| `(nanogpt [^`]*)` \|", text, flags=re.MULTILINE):
        yield code, ""


def named(text: str) -> list[str]:
    """Commands in sentences, perhaps without what they need; ``[TOPIC]`` is left out."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", text)
    return [re.sub(r"\[[A-Z]+\]", "", code) for code in re.findall(r"`(nanogpt [^`\n]*)`", prose)]


@functools.cache
def loaded(name: str) -> Any:
    """A command; the texts name each a hundred times, and making one takes a tenth of a second."""
    return lazy.load(name)


def parsed(line: str) -> tuple[Any, list[str]]:
    """The command that a line runs, and the arguments it is given."""
    words = shlex.split(line)
    assert words[1] in lazy.TABLE, line
    command = loaded(words[1])
    rest = words[2:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("path", TEXTS, ids=by_name)
def test_every_command_and_option_that_is_shown_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    whole = dict(examples(text))
    for line in [*whole, *named(text)]:
        if line.startswith("nanogpt --"):
            continue  # an option of the program itself
        command, rest = parsed(line)
        refused = "error: No such option" in whole.get(line, "")
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        options = [word.split("=")[0] for word in rest if word.startswith("-") and word != "-"]
        assert (set(options) <= known) != refused, line
        if line in whole and not refused:
            command.make_context(command.name, list(rest))  # its values are valid, too


@pytest.mark.parametrize("path", TEXTS, ids=by_name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, _, anchor in re.findall(r"\]\(([^)#:\s]+)(#([\w-]+))?\)", text):
        assert (path.parent / target).is_file(), f"{path.name}: {target}"
        if path in PAGES:  # an installed manual has nothing around it
            assert "/" not in target, f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors((path.parent / target).read_text(encoding="utf-8")), anchor


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in found}


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_a_page_begins_with_its_only_heading_of_the_first_level(path: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1


def test_recipes_that_are_shown_are_valid(tmp_path: Path) -> None:
    found = [b for p in PAGES for b in re.findall(r"```toml\n(.*?)```", page(p.stem), re.DOTALL)]
    assert found
    for text in found:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        recipe_files.load(str(tmp_path / "mine.toml"), [])


@pytest.mark.parametrize("path", TEXTS, ids=by_name)
def test_overrides_that_are_shown_are_valid(path: Path) -> None:
    for line, output in examples(path.read_text(encoding="utf-8")):
        words = shlex.split(line)
        sets = [b for a, b in itertools.pairwise(words) if a == "--set"]
        if words[1] in ("train", "plan", "recipe", "verify-resume") and "error:" not in output:
            recipe_files.load("debug", [s for s in sets if not s.startswith("train.max_steps")])


def test_python_examples_run(
    tmp_path: Path,
    asset_cache: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other in one folder, as a reader would; the second needs the first's run."""
    asset_cache("tinyshakespeare")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", page("python"), flags=re.DOTALL)
    assert len(examples) == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for example in examples:
        exec(example, names)
        printed.append(capsys.readouterr().out)
    trained, sampled, inspected, watched = printed
    steps = [line.split() for line in trained.splitlines()]
    assert [int(step) for step, _ in steps] == [50, 100]
    assert float(steps[-1][1]) == pytest.approx(2.63, abs=0.05)
    assert len(sampled.rstrip("\n")) == 40
    (line,) = inspected.splitlines()
    assert "transformer.h.3.mlp.c_proj.weight" in line
    assert "times as large as in the other blocks" in line
    assert watched == ""
    told = EventReader(tmp_path / "runs" / "mine" / "events.jsonl").read_all()
    assert [event.step for event in told if isinstance(event, Layers)] == [1, 11]
    assert all(len(example.splitlines()) <= 14 for example in examples)
