"""Every alarm and finding has a page, whose numbers are those of the code that judges."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import smallest
import torch

import nanogpt_cli
from nanogpt_cli import schemes
from nanogpt_cli.cli import app, lazy
from nanogpt_cli.errors import UserError
from nanogpt_cli.explain import registry, values
from nanogpt_cli.explain.page import ALARM, Page, fields
from nanogpt_cli.init.drawing import build
from nanogpt_cli.init.lint_signals import MAX_GROWTH
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.recipe import problems
from nanogpt_cli.run import events, explained
from nanogpt_cli.training.alarms import eval_rules, judge, layer_rules, system_alarms

PACKAGE = Path(nanogpt_cli.__file__).parent
SMALL = values.Shape(2, 64)
TOPICS = {name: topic for topics in registry.KINDS.values() for name, topic in topics.items()}
# Where findings come from, and calls and functions whose strings are codes.
SOURCES = [*(PACKAGE / "init").glob("lint*.py"), *(PACKAGE / "modules" / "faults").glob("*.py"),
           PACKAGE / "modules" / "starts" / "laws_lint.py"]  # fmt: skip
JUDGING = {"Verdict": 1, "Finding": 1, "_past": 1, "_pair": 1}
_CODE = re.compile(r"[a-z]+(-[a-z]+)*")


def strings(node: ast.AST | None) -> Iterator[str]:
    """Constants that an expression may be: itself, or the arms of a condition."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)


def codes_of(tree: ast.AST) -> Iterator[str]:
    """Codes of the findings that a module can yield."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = JUDGING.get(node.func.id)
            if place is not None and len(node.args) > place:
                yield from strings(node.args[place])
        # (severity, code, text) of laws_lint
        elif isinstance(node, ast.Tuple):
            items = node.elts
            if len(items) == 3 and isinstance(items[0], ast.Name) and items[0].id.isupper():
                yield from strings(items[1])
        elif isinstance(node, ast.FunctionDef) and node.name == "_cause":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and isinstance(inner.value, ast.Tuple):
                    yield from strings(inner.value.elts[0])
                elif isinstance(inner, ast.Tuple) and len(inner.elts) == 4:
                    yield from strings(inner.elts[2])  # (measured, expected, code, cause)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            if any(isinstance(t, ast.Name) and t.id == "topic" for t in node.targets):
                yield from strings(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name == "_kind":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return):
                    yield from strings(inner.value)


def findings() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        found |= {c for c in codes_of(ast.parse(path.read_text())) if _CODE.fullmatch(c)}
    return found


def test_every_alarm_and_finding_has_a_page_and_no_page_is_of_neither() -> None:
    kinds = {*judge.STEP_KINDS, *layer_rules.KINDS, *eval_rules.KINDS, *system_alarms.KINDS}
    assert kinds == set(explained.ALARMS)
    assert {explained.topic(kind) for kind in kinds} == registry.KINDS[ALARM].keys()
    modules = (judge, layer_rules, eval_rules, system_alarms)
    rules = "".join(Path(str(module.__file__)).read_text() for module in modules)
    raised = re.findall(r'Finding\(\s*"(\w+)"', rules)
    assert set(raised) == kinds  # what the rules raise is what is listed
    pages = TOPICS.keys() - registry.KINDS[ALARM].keys()
    assert findings() == pages


def test_the_search_for_codes_finds_a_new_one() -> None:
    """The test above would fail for a finding without a page."""
    tree = ast.parse('Verdict(WARN if x else NOTE, "brand-new", "text")')
    assert list(codes_of(tree)) == ["brand-new"]


@pytest.mark.parametrize("name", TOPICS)
def test_pages_have_every_part_and_their_commands_exist(name: str) -> None:
    topic = TOPICS[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    for text in (topic.title, topic.says, topic.judged, topic.healthy, *topic.causes):
        assert text == text.strip() != ""
        assert "  " not in text
    assert topic.causes
    assert topic.actions
    for action in topic.actions:
        words = shlex.split(action.command)
        assert words[0] == "nanogpt"
        command = lazy.load(words[1])
        options = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options
        for at, word in enumerate(words):
            if word == "--set":
                section, _, rest = words[at + 1].partition(".")
                assert rest.partition("=")[0] in problems.keys()[section]


@pytest.mark.parametrize("name", TOPICS)
def test_limits_are_read_and_not_typed(name: str) -> None:
    """A sentence on how something is judged holds no number of its own but those of formulas."""
    typed = re.sub(r"\{[^}]*\}", "", TOPICS[name].judged)
    known = ("fp16", "log10", "float32", "√(2L)", "√2", "1/√(3", "(l+1)", "std 1",
             "80 %", "1,024", "16-bit", "2^", "1/")  # fmt: skip
    for text in known:
        typed = typed.replace(text, "")
    assert not re.search(r"\d", typed), typed


@pytest.mark.parametrize("name", TOPICS)
def test_pages_are_filled(name: str) -> None:
    page = page_of(name)
    topic = TOPICS[name]
    assert [fact.name for fact in page.facts] == fields(topic.judged, topic.healthy)
    assert all(math.isfinite(fact.value) for fact in page.facts)
    assert not re.search(r"[{}]", page.judged + page.healthy)


def page_of(name: str) -> Page:
    page = registry.page(name, SMALL)
    assert isinstance(page, Page)
    return page


def test_a_quiet_run_raises_no_alarm_and_a_planted_fault_does() -> None:
    quiet = values.quiet_run()
    assert not any(quiet[f"run_{kind}"] for kind in explained.ALARMS)
    alarms = judge.Alarms(65)
    found = alarms.update(
        events.Step(step=1, loss=math.nan, lr=1e-3, grad_norm=1.0, tokens=1, tokens_per_s=1.0)
    )
    assert [explained.command(a.kind) for a in found] == ["nanogpt explain non-finite"]


@pytest.mark.numeric
def test_healthy_values_agree_with_a_model_that_is_built() -> None:
    """Theory beside a measurement of the same scheme by hooks on drawn weights."""
    found = values.start_of(SMALL)
    config = GPTConfig(2, 1, 64, 1024, 50304, 0.0, bias=True, activation="gelu")
    model = build(config, schemes.get("gpt2"), seed=0)
    tokens = torch.randint(50304, (4, 128), generator=torch.Generator().manual_seed(1))
    sizes: list[float] = []
    keep = lambda _, __, out: sizes.append(float(out.square().mean().sqrt()))  # noqa: E731
    inputs = lambda _, args: sizes.append(float(args[0].square().mean().sqrt()))  # noqa: E731
    blocks = list(model.transformer.h)
    blocks[0].register_forward_pre_hook(inputs)
    blocks[-1].register_forward_hook(keep)
    with torch.no_grad():
        model(tokens, tokens)
    # One draw of 64 channels: the logarithm scatters by about 2/√64 (lint_signals).
    assert math.log(sizes[1] / sizes[0] / found["growth"]) == pytest.approx(0, abs=2 / 8)
    matrices = [p for n, p in model.named_parameters() if n.startswith("transformer.h.0")]
    matrices = [p.detach() for p in matrices if p.dim() == 2]
    total = sum(float(p.square().sum()) for p in matrices)
    rms = math.sqrt(total / sum(p.numel() for p in matrices))
    assert found["weight_rms"] == pytest.approx(rms, rel=6 / math.sqrt(2 * 64 * 64))
    drawn = values.drawn()
    assert drawn["std"] == pytest.approx(0.02, rel=6 / math.sqrt(2 * drawn["cells"]))
    assert drawn["rank"] == drawn["sampled"]


def test_a_limit_on_the_page_is_the_codes() -> None:
    page = page_of("growth")
    assert f"more than {MAX_GROWTH:g} times" in page.judged
    assert {fact.name: fact.value for fact in page.facts}["max_growth"] == MAX_GROWTH


def test_names_are_taken_as_alarms_have_them_and_unknown_ones_refused() -> None:
    assert registry.page("Dead_Units", SMALL).name == "dead-units"
    with pytest.raises(UserError, match="no topic 'ded-units'") as caught:
        registry.page("ded-units")
    assert "did you mean dead-units?" in (caught.value.hint or "")


def run(*words: str) -> tuple[str, str, int]:
    from typer.testing import CliRunner

    found = CliRunner().invoke(app, list(words))
    return found.stdout, found.stderr, found.exit_code


def test_a_run_that_goes_wrong_names_the_page_and_the_page_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recipe of a run that must diverge to the answer of the command it shows."""
    monkeypatch.chdir(tmp_path)
    Path("toy.txt").write_text(
        "the king walked under the trees while rain fell on the stone\n" * 60
    )
    train = {"max_steps": 20, "eval_every": 20, "checkpoint_every": 20}
    Path("toy.toml").write_text(
        smallest.recipe(train=train, optim={"lr": 50.0, "grad_clip": 0.0, "warmup_steps": 0})
    )
    _, err, _ = run("train", "toy.toml")
    shown = re.findall(r"what it means: (nanogpt explain [\w-]+)", err)
    assert shown
    assert len(shown) == len(set(shown))  # each kind once
    out, _, code = run(*shlex.split(shown[0])[1:])
    assert code == 0
    assert out.startswith(shlex.split(shown[0])[2] + ": ")


def test_findings_name_their_pages_and_the_pages_answer() -> None:
    small = ("--n-layer", "2", "--n-embd", "64", "--n-head", "1", "--vocab-size", "64")
    out, _, code = run("init-inspect", *small, "--theory", "--init", "pytorch")
    assert code == 0
    line = " ".join(out[out.index("What it means: nanogpt explain") :].split())
    line = line[: line.index(")")]
    named = re.findall(r"[a-z]+(?:-[a-z]+)*", line.partition("explain ")[2])
    named = [name for name in named if name != "or"]
    assert named
    assert named[0] in registry.KINDS["signal"]
    for name in named:
        assert name in TOPICS
    assert run("explain", named[0], "--n-layer", "2", "--n-embd", "64")[2] == 0


@pytest.mark.parametrize("name", ["dead-units", "growth", "mean"])
def test_the_command_fits_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, err, code = run("explain", name, "--n-layer", "2", "--n-embd", "64")
    assert code == 0
    assert err.strip().splitlines()[-1].startswith("next: nanogpt ")
    lines = out.splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


def test_the_list_and_the_json() -> None:
    out, _, code = run("explain")
    assert code == 0
    groups = out.split("\n\n")
    # Concepts first, each with its question; the many findings by their names alone.
    assert [line.split()[0] for line in groups[0].splitlines()[1:]] == list(registry.CONCEPTS)
    assert all(line.endswith("?") for line in groups[0].splitlines()[1:])
    assert {line.split()[0] for line in groups[1].splitlines()[1:]} == registry.KINDS[ALARM].keys()
    found = {word for group in groups[2:] for word in re.findall(r"^  .*", group, re.M)}
    listed = {name for line in found for name in line.strip(" ,").split(", ")}
    assert listed == TOPICS.keys() - registry.KINDS[ALARM].keys()
    out, _, code = run("explain", "--json")
    names = [topic["name"] for topic in json.loads(out)["topics"]]
    assert names == registry.names()
    out, _, code = run("explain", "growth", "--json", "--n-layer", "2", "--n-embd", "64")
    assert code == 0
    told = json.loads(out)
    assert told["name"] == "growth"
    assert {fact["name"]: fact["value"] for fact in told["facts"]}["max_growth"] == MAX_GROWTH
