from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import smallest
import torch
from programs import nanogpt
from typer.testing import CliRunner

from nanogpt_cli import schemes
from nanogpt_cli.cli import app, console
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import prepare

SMALL = ["--n-layer", "3", "--n-embd", "64", "--n-head", "2", "--vocab-size", "300",
         "--block-size", "32"]  # fmt: skip


@pytest.fixture(autouse=True)
def of_its_own_width() -> Iterator[None]:
    """Let every test choose the width of the terminal, which is read once in a process."""
    console.stdout.cache_clear()
    yield
    console.stdout.cache_clear()


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["init-inspect", *args], env={"COLUMNS": "100"})
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def as_json(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*args, "--json").splitlines()[-1])
    return found


def test_the_page_has_every_section_and_fits_the_terminal() -> None:
    page = run(*SMALL, "--details")
    for part in ("model", "scheme", "normal(0.02/√(2L))", "memory", "Expected by theory",
                 "Weights by class", "wte = head", "Over depth", "Residual stream and branches",
                 "Inside the blocks", "∂mlp", "Loss before the first step", "looks fine",
                 "all 27 tensors follow their laws"):  # fmt: skip
        assert part in page, part
    assert max(map(len, page.splitlines())) <= 100
    assert "…" not in page


@pytest.mark.parametrize("depth", ["12", "48"])
def test_the_first_page_answers_before_its_tables(depth: str) -> None:
    page = first_page(*SMALL[2:], "--n-layer", depth, "--init", "gpt2-w")
    parts = ("model  ", "scheme  ", "By theory: fine", "This initialisation looks fine",
             "signals grow ×", "nanogpt explain", "Over depth", "Weights by class")  # fmt: skip
    at = [page.index(part) for part in parts]
    assert at == sorted(at)
    assert "Inside the blocks" not in page
    assert "add --details" in page


def first_page(*args: str) -> str:
    """The page at 80 columns, which fits 40 lines with what to do next on the last."""
    console.stdout.cache_clear()  # its width is read once in a process
    page = CliRunner().invoke(app, ["init-inspect", *args], env={"COLUMNS": "80"}).output
    console.stdout.cache_clear()
    lines = page.splitlines()
    assert len(lines) <= 40
    assert lines[-1].startswith("next: nanogpt ")
    assert max(map(len, lines[:-1])) <= 80
    return page


def test_a_finding_comes_first_with_what_to_do() -> None:
    page = first_page(*SMALL[2:], "--n-layer", "48", "--init", "normal", "--n-embd", "256")
    said = " ".join(page.split())
    assert "By theory: 2 warnings (growth, gradients)" in said
    assert re.search(r"This initialisation has \d warnings", said)
    assert page.index(" ! ") < page.index("model.init=gpt2") < page.index(" ✓ ")
    assert "nanogpt explain growth (or " in said


def test_what_is_fine_is_said_with_the_limits_of_the_verdicts() -> None:
    from nanogpt_cli.init import lint_signals as limits

    found = {v["topic"]: v["value"] for v in as_json(*SMALL)["verdicts"]}
    said = " ".join(first_page(*SMALL).split())
    growth, gradients = f"{found['growth']:.3g}", f"{found['gradients']:.3g}"
    assert f"×{growth} from the embedding to the last block; up to ×{limits.MAX_GROWTH:g}" in said
    assert f"×{gradients} from the last block to the first; up to ×" in said
    assert f"a blind guess {found['loss']:+.2f}; up to +{limits.MAX_LOSS_EXCESS:g} is" in said
    assert f"within {found['theory']:.1%} of what theory expects" in said


def test_what_is_proposed_next_is_about_the_same_model(module: str) -> None:
    def proposed(*args: str) -> str:
        return first_page(*args).splitlines()[-1].removeprefix("next: ")

    command = proposed(*SMALL)
    assert command.endswith(" --compare normal,pytorch,mup")
    assert sorted(command.split()[2:-2]) == sorted(SMALL)
    args = ("--n-layer", "2", "--n-embd", "64", "--no-bias", "--set", "model.dropout=0.1")
    command = proposed(*args, "--theory", "--init", "mup")
    assert "--no-bias --set model.dropout=0.1 --compare gpt2,normal,pytorch" in command
    for args in (("--from", f"{module}:make"), ("debug", "--set", "model.norm=rms")):
        command = proposed(*args)
        assert command.endswith(" --details")
        done = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": "100"})
        assert "Residual stream and branches" in done.output
        assert done.output.splitlines()[-1] == "next: nanogpt docs initialisation"


@pytest.mark.parametrize("columns", ["0", "1", "2", "3", "12"])
def test_a_console_of_any_width_gets_the_page(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert run(*SMALL)


def test_measured_weights_are_those_train_starts_from() -> None:
    from nanogpt_cli import schemes
    from nanogpt_cli.init.drawing import build
    from nanogpt_cli.model.gpt import GPTConfig

    rows = {row["key"]: row for row in as_json(*SMALL, "--seed", "5")["weights"]}
    config = GPTConfig(3, 2, 64, 32, 300, 0.0, False, "gelu")
    model = build(config, schemes.get("gpt2"), 5)
    weight = model.transformer.h[2].mlp.c_fc.weight
    row = rows["transformer.h.2.mlp.c_fc.weight"]
    assert row["maximum"] == float(weight.detach().max())
    assert row["std"] == pytest.approx(float(weight.detach().std(correction=0)), rel=1e-5)


def test_json_holds_expected_beside_measured() -> None:
    found = as_json(*SMALL, "--init", "normal", "--activation", "relu", "--bias")
    assert found["model"]["activation"] == "relu"
    assert found["scheme"]["name"] == "normal"
    assert len(found["measured"]["stream_rms"]) == len(found["expected"]["stream_rms"]) == 4
    assert found["measured"]["growth"] == pytest.approx(found["expected"]["growth"], rel=0.1)
    assert {v["topic"] for v in found["verdicts"]} >= {"growth", "laws", "loss"}


def test_theory_only_draws_no_weight() -> None:
    assert as_json(*SMALL, "--theory")["measured"] is None
    page = run(*SMALL, "--theory", "--init", "layer-index", "--details")
    for part in ("as declared", "normal(0.01414)", "Residual stream and branches", "∂mlp"):
        assert part in page, part
    assert "measured" not in page


def test_presets_recipes_and_sets(tmp_path: Path) -> None:
    assert as_json("--preset", "gpt2-xl", "--n-layer", "2", "--theory")["model"]["n_embd"] == 1600
    found = as_json("--set", "model.n_layer=2", "--set", "model.init=mup", "--theory",
                    "--n-embd", "128")  # fmt: skip
    assert found["model"]["n_layer"] == 2
    assert found["model"]["multipliers"]["output"] == 2.0
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[model]\nn_layer = 2\nn_head = 2\nn_embd = 32\ninit = "custom"\n'
        '[init]\nbase = "gpt2"\nfc = "uniform(0.05)"\n[init.multipliers]\nresidual = "1/L"\n'
    )
    found = as_json(str(recipe), "--n-head", "4", "--tokens", "16")
    assert found["model"]["n_head"] == 4
    assert found["model"]["multipliers"]["residual"] == 0.5
    laws = {row["tensor_class"]: row["law"] for row in found["weights"]}
    assert laws["fc"] == "uniform(0.05)"


def test_lint_fails_only_on_a_failure() -> None:
    run(*SMALL, "--lint")
    page = run(*SMALL, "--init", "pytorch-embtie", "--lint", code=1)
    assert "copies its input" in page


def test_lint_has_two_levels() -> None:
    warned = [*SMALL, "--theory", "--init", "deepnorm"]  # made for another architecture
    assert "architecture mismatch" in run(*warned, "--lint")
    run(*warned, "--lint=warn", code=1)
    run(*warned, "--lint", "warn", code=1)
    with pytest.raises(UserError, match="--lint=loud: unknown level"):
        run(*SMALL, "--lint=loud")


def test_csv_has_a_line_per_block(tmp_path: Path) -> None:
    run(*SMALL, "--csv", str(tmp_path / "depth.csv"))
    rows = list(csv.DictReader((tmp_path / "depth.csv").open()))
    assert [row["block"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[3]["stream_rms_measured"]) > float(rows[0]["stream_rms_expected"])
    assert rows[0]["mlp_rms_measured"] == ""


def test_a_picture_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        run("--n-layer", "1000", "--svg", "x.jpg")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib"):
        run("--n-layer", "1000", "--png", "x.png")


@pytest.mark.numeric
def test_the_same_inspection_draws_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib, and with the numbers that --csv writes."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("a", "b"):
        run(*SMALL, "--svg", str(tmp_path / f"{name}.svg"), "--csv", str(tmp_path / "d.csv"))
    picture = (tmp_path / "a.svg").read_text()
    assert picture == (tmp_path / "b.svg").read_text()
    assert len(picture) < 30_000
    root = ElementTree.fromstring(picture)
    shown = [element.text or "" for element in root.iter() if element.text]
    assert "GPT-2: 3 layers × 64 channels, init gpt2" in shown
    assert any("✓ all 27 tensors follow their laws" in text for text in shown)
    assert shown.count("stream, measured") == shown.count("MLP, expected") == 1
    ticks = [text for text in shown if re.fullmatch(r"\d+(?:\.\d+)?", text)]
    assert {"0", "1", "2", "3"} <= set(ticks)
    assert not [tick for tick in ticks if tick.endswith(".5") and tick[0] in "0123"]
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    dots = next(group for group in root.iter() if group.tag.endswith("}g"))
    heights = [float(e.attrib["cy"]) for e in dots if e.tag.endswith("circle")]
    values = [math.log(float(row["stream_rms_measured"])) for row in rows]
    slopes = [(b - a) / (d - c) for a, b, c, d in
              zip(heights, heights[1:], values, values[1:], strict=False)]  # fmt: skip
    assert len(heights) == 4
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.05)  # a straight line in log(value)


def test_png_and_pdf_are_drawn_by_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(*SMALL, "--png", str(tmp_path / "a.png"), "--svg", str(tmp_path / "a.pdf"))
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"


def test_comparisons_show_a_row_each() -> None:
    page = run(*SMALL, "--compare", "normal,pytorch,nanogpt")
    assert page.count("gpt2") == 1
    assert "token-share" in page
    found = as_json(*SMALL, "--compare", "normal", "--measure")["rows"]
    assert [row["name"] for row in found] == ["gpt2", "normal"]
    assert found[1]["measured"]["growth"] == pytest.approx(found[1]["expected"]["growth"], rel=0.1)
    assert "- tying" in run(*SMALL, "--ablate", "tying,ln,bias,residual-scale")
    assert len(as_json(*SMALL, "--scan", "depth")["rows"]) >= 9


@pytest.mark.parametrize("columns", [60, 80, 100, 140])
@pytest.mark.parametrize("measure", [[], ["--measure"]])
def test_a_comparison_explains_the_columns_it_has(columns: int, measure: list[str]) -> None:
    asked = ["init-inspect", *SMALL, "--compare", "normal", *measure]
    page = CliRunner().invoke(app, asked, env={"COLUMNS": str(columns)}).stdout
    heads = next(line for line in page.splitlines() if "xL/x0" in line)
    legend = " ".join(page[page.index("x0: " if " x0 " in heads else "xL: ") :].split())
    for name in ("x0", "own", "token", "cos", "exp. x"):
        assert (f" {name}" in heads) == (f"{name}: " in legend), name


def test_coordinate_check_as_json() -> None:
    found = as_json(*SMALL, "--coord-check", "--widths", "32,64", "--init", "mup")
    assert {row["name"] for row in found["exponents"]} == {
        "embed", "scores", "attn", "mlp", "stream", "logits", "target"
    }  # fmt: skip
    assert found["scales"] == [32, 64]


def test_coordinate_check_says_what_grows_with_depth_and_fails_the_lint() -> None:
    args = ["init-inspect", *SMALL, "--coord-check", "--over", "depth", "--lint"]
    done = CliRunner().invoke(app, [*args, "--optimizer", "muon", "--init", "normal"])
    assert done.exit_code == 1
    assert "✗ grows" in done.stdout
    assert "Muon" in done.stdout
    assert CliRunner().invoke(app, [*args, "--init", "completep"]).exit_code == 0


def test_warmup_compares_the_recipes_rate_with_its_limit() -> None:
    args = [*SMALL, "--warmup", "--input", "random", "--tokens", "16"]
    found = as_json(*args, "--set", "optim.lr=1e-6")
    assert found["below"]
    assert found["limit"] == pytest.approx(38 / found["sharpness"])
    hot = [*args, "--set", "optim.lr=1", "--set", "optim.warmup_steps=0", "--lint"]
    done = CliRunner().invoke(app, ["init-inspect", *hot])
    assert done.exit_code == 1
    assert "set optim.warmup_steps" in " ".join(done.stdout.split())


def test_dropout_is_said_to_be_off() -> None:
    page = run(*SMALL, "--set", "model.dropout=0.2", "--no-gradients")
    assert "evaluation, with dropout off" in page
    found = as_json(*SMALL, "--set", "model.dropout=0.2", "--theory")
    assert found["dropout_factors"][0] == pytest.approx(0.8**-0.5)
    assert as_json(*SMALL, "--theory")["dropout_factors"] == []


def test_all_adds_the_spectral_norms() -> None:
    assert as_json(*SMALL, "--no-gradients")["spectral"] == []
    found = as_json(*SMALL, "--no-gradients", "--all", "--set", "optim.muon_lr=0.1")["spectral"]
    row = next(r for r in found if r["key"] == "transformer.h.0.mlp.c_fc.weight")
    assert row["norm"] == pytest.approx(row["expected"], rel=0.1)
    assert row["muon_update"] == pytest.approx(0.1 * 2 / row["norm"])


def test_list_names_every_scheme() -> None:
    assert [row["name"] for row in as_json("--list")["schemes"]] == schemes.names()
    page = CliRunner().invoke(app, ["init-inspect", "--list"], env={"COLUMNS": "80"}).stdout
    assert "spectral-mup" in page
    assert len(page.splitlines()) <= 3 * len(schemes.names())


def test_all_and_hist_add_tables() -> None:
    page = run(*SMALL, "--all", "--hist", "--no-gradients")
    assert "h.2.attn.c_attn/v" in page
    assert "Pre-activations" in page
    assert "∂mlp" not in page


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--n-embd", "100", "--n-head", "3"], "n_head = 3 does not divide"),
        (["--n-layer", "0"], "n_layer"),
        (["--n-layer", "10000"], "less than or equal to 1000"),
        (["--n-embd", "1000000", "--n-head", "2"], "two blocks of 1000000 channels"),
        (["--init", "gtp2"], "gpt2"),
        (["--preset", "gpt5"], "gpt2-xl"),
        (["--activation", "tanh"], "activation"),
        (["--set", "model.n_layer"], "KEY=VALUE"),
        (["--set", "model.layers=3"], "layers"),
        (["--scan", "heads"], "--scan heads is unknown"),
        (["--ablate", "dropout"], "residual-scale"),
        (["--compare", "gpt2,nope"], "nope"),
        (["--coord-check", "--widths", "a,b"], "whole numbers"),
        (["--coord-check", "--widths", "64"], "two widths"),
        (["--coord-check", "--over", "heads"], "--over heads"),
        (["--coord-check", "--over", "depth", "--depths", "2"], "two depths"),
        (["--coord-check", "--optimizer", "sgd"], "--optimizer sgd"),
        (["--warmup", "--set", "optim.name=muon"], "only the stability of AdamW"),
        (["--from", "nowhere"], "nowhere"),
        (["--from", "x", "--n-layer", "2"], "defines the model itself"),
        (["--from", "nosuchmodule:make"], "nosuchmodule"),
        (["--input", "/nowhere/at/all"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_error(args: list[str], word: str) -> None:
    with pytest.raises(UserError) as caught:
        run(*args)
    assert word in str(caught.value)


MODULE = """
import torch
from torch import nn
from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build
from nanogpt_cli.model.gpt import GPTConfig

CONFIG = GPTConfig(4, 2, 64, 32, 300, 0.0, False, "relu")

def make():
    return build(CONFIG, schemes.get("small-wang"), 0)

def hot():
    model = make()
    with torch.no_grad():
        model.transformer.wte.weight.normal_()
    return model

def broken():
    model = make()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    return model

class Model(nn.Module):
    def __init__(self, config, size=3):
        super().__init__()

class ModelConfig:
    pass

def noisy():
    print("their own words")
    return make()

def other():
    return nn.Sequential(nn.Linear(3, 3))

def partial():
    model = make()
    del model.transformer.h[2].mlp.c_fc
    return model

def raises():
    raise RuntimeError("no such luck")

def leaves():
    raise GeneratorExit("gone")

class Unreadable(torch.nn.Module):
    def named_parameters(self, *_, **__):
        raise BaseException("not for you")

def text():
    return "model"
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "theirs.py"
    path.write_text(MODULE)
    return str(path)


def test_a_foreign_module_is_named(module: str) -> None:
    found = as_json("--from", f"{module}:make")
    assert found["model"]["activation"] == "relu"
    assert any("nearest scheme: small-wang" in v["text"] for v in found["verdicts"])
    page = run("--from", f"{module}:hot", "--lint", code=1)
    assert "tied to the head" in page
    assert "looks like" in page


@pytest.mark.parametrize("lint", [[], ["--lint"]])
def test_weights_that_are_not_numbers_are_shown_and_refused(module: str, lint: list[str]) -> None:
    asked = ["init-inspect", "--from", f"{module}:broken", *lint]
    result = CliRunner().invoke(app, asked, env={"COLUMNS": "100"})
    assert "c_fc.weight: 1 of 16,384 values are NaN or infinite" in " ".join(result.stdout.split())
    assert "the stream after block 2 is not a finite number" in result.stdout
    assert "times small-wang" not in result.stdout  # a NaN's std is no std of 0
    assert isinstance(result.exception, UserError)
    assert "h.1.mlp.c_fc.weight contains NaN" in str(result.exception)


@pytest.mark.parametrize(
    ("factory", "word"),
    [("other", "tells its vocabulary"), ("partial", "no attribute 'c_fc'"),
     ("raises", "no such luck"), ("leaves", "raised GeneratorExit: gone"),
     ("Unreadable", "raised BaseException: not for you"), ("text", "nn.Module"),
     ("missing", "has no 'missing'"), ("Model", "needs arguments (config)")],
)  # fmt: skip
def test_a_module_that_is_no_decoder_is_refused(module: str, factory: str, word: str) -> None:
    with pytest.raises(UserError) as caught:
        run("--from", f"{module}:{factory}")
    assert word in str(caught.value)


def test_the_example_for_a_class_with_arguments_is_python(module: str) -> None:
    with pytest.raises(UserError) as caught:
        run("--from", f"{module}:Model")
    assert "`from theirs import Model, ModelConfig`" in caught.value.hint
    assert "`def make(): return Model(ModelConfig())`" in caught.value.hint


def test_their_prints_do_not_come_before_our_json(module: str) -> None:
    result = CliRunner().invoke(app, ["init-inspect", "--from", f"{module}:noisy", "--json"])
    assert json.loads(result.stdout)["verdicts"]
    assert "their own words" in result.stderr


def test_a_trained_model_is_not_judged_as_a_start(module: str, tmp_path: Path) -> None:
    """Neither a run, whose step is known, nor weights from elsewhere, whose gains have moved."""
    from nanogpt_cli.init.drawing import build
    from nanogpt_cli.model.gpt import GPTConfig
    from nanogpt_cli.run.folder import RunFolder
    from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer
    from nanogpt_cli.training.checkpoints import checkpoint

    config = GPTConfig(3, 2, 64, 32, 300, 0.0, True, "gelu")
    model = build(config, schemes.get("gpt2"), 0)
    with torch.no_grad():
        for weight in (model.transformer.wte.weight, model.transformer.h[0].mlp.c_proj.weight):
            weight.mul_(20)
    run_folder = RunFolder(tmp_path / "runs" / "x")
    run_folder.path.mkdir(parents=True)
    gains = [p for name, p in model.named_parameters() if "ln_" in name and "weight" in name]
    for step, gain in ((0, 1.0), (700, 1.0), (0, 1.1)):
        with torch.no_grad():
            for parameter in gains:
                parameter[:5] = gain
        checkpoint.save(run_folder, model, {"step": step}, tokenizer=ByteTokenizer().to_json())
        origin = str(run_folder.checkpoints / f"step-{step:06d}")
        found = as_json("--from", origin)["verdicts"]
        bad = [v["topic"] for v in found if v["severity"] in ("warn", "fail")]
        assert bool(bad) == (step == 0 and gain == 1.0), found
        assert any("these weights are trained" in v["text"] for v in found) != bool(bad)


def test_transformers_modules_and_folders_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from nanogpt_cli.interop.module import adopt

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=6, n_embd=64, n_head=4, vocab_size=500)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = adopt(theirs, "theirs")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=1e-5, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "hf")
    found = as_json("--from", str(tmp_path / "hf"), "--tokens", "32")
    assert any("nearest scheme: gpt2" in v["text"] for v in found["verdicts"])
    assert math.isfinite(found["measured"]["loss"])


def test_the_layers_view_gets_the_inspection(tmp_path: Path) -> None:
    from nanogpt_cli.cli.init_inspect import subject as inputs
    from nanogpt_cli.cli.init_inspect.written import About, write_run
    from nanogpt_cli.init.inspect import measure
    from nanogpt_cli.tui.plain import summary
    from nanogpt_cli.tui.state.session import RunSession

    options = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50}
    subject, _ = inputs.subject("", "", [], options, 0, "random")
    idx, targets, _ = inputs.tokens(subject.config, "", 1, 16, 0)
    found = measure(subject.source, idx, targets, backward=False)
    about = About(subject.label, subject.label, 1000, subject.config.vocab_size, 2)
    write_run(tmp_path / "run", about, found.signals, None)
    session = RunSession(tmp_path / "run")
    session.poll(1 << 22, float("inf"))
    assert summary(session)
    assert "resid_rms" in (tmp_path / "run" / "events.jsonl").read_text()


def test_the_layers_view_reads_what_it_is_opened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanogpt_cli.tui import terminal
    from nanogpt_cli.tui.app import Dashboard

    opened: list[tuple[bool, str, bool]] = []

    def look(app: Dashboard) -> None:
        (session,) = app.desk.sessions
        session.poll(1 << 22, float("inf"))
        opened.append((app.reader is not None, app.start_page, session.view.ended is not None))

    monkeypatch.setattr(Dashboard, "run", look)
    monkeypatch.setattr(terminal, "why_not", lambda: "")
    run(*SMALL, "--theory", "--tui")
    assert opened == [(True, "layers", True)]


def test_a_comparison_is_whole_in_a_pipe() -> None:
    asked = ["init-inspect", *SMALL, "--compare", "normal,nanochat", "--measure"]
    page = CliRunner().invoke(app, asked, env={"COLUMNS": None}).stdout
    heads = next(line for line in page.splitlines() if "xL/x0" in line).split()
    assert {"x0", "xL", "exp.", "own", "token", "cos", "verdicts"} <= {*heads}
    assert "…" not in page


def test_a_recipe_is_inspected_on_its_own_data_once_they_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.txt").write_text("the king slept under the trees\n" * 100)
    Path("toy.toml").write_text(smallest.recipe(data={"tokenizer": "byte"}))
    before = run("toy.toml", "--theory")
    assert "8 random tokens" in before
    prepare.ensure({"name": "toy.txt", "tokenizer": "byte"}, report=lambda _: None)
    assert "8 tokens of toy-byte" in run("toy.toml", "--theory")
    assert "8 random tokens" in run("toy.toml", "--theory", "--input", "random")


def test_next_command_of_a_study_trains_the_recipe_that_was_studied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nn_layer = 2\nn_head = 2\nn_embd = 32\n")
    assert nanogpt("init-inspect", str(file), "--set", "model.bias=true", "--scan", "depth") == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"next: nanogpt train {file} --set model.bias=true --set model.init=gpt2"
