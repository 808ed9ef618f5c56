"""Concept pages: numbers recomputed by another way, and verdicts that turn with the model."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
import smallest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from nanogpt_cli import schemes
from nanogpt_cli.cli import app, lazy
from nanogpt_cli.cli.explain import subject
from nanogpt_cli.errors import UserError
from nanogpt_cli.explain import (
    activation,
    activation_moments,
    depth,
    measures,
    parts,
    registry,
    steps,
    values,
    width,
)  # fmt: skip
from nanogpt_cli.explain.concept import FALSE, HALF, TRUE, ConceptPage
from nanogpt_cli.explain.values import Model, Shape
from nanogpt_cli.init import kernels
from nanogpt_cli.init.drawing import build
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.mlp import ACTIVATIONS
from nanogpt_cli.recipe import problems
from nanogpt_cli.recipe.sections import Optim
from nanogpt_cli.training.optimizers import newton_schulz

SMALL = Shape(2, 64)
CLAIMS = ("times", "root", "width", "relu", "variance", "warmup")  # of the page init, in order


def page(name: str, shape: Shape = SMALL, language: str = "en") -> ConceptPage:
    found = registry.page(name, shape, language)
    assert isinstance(found, ConceptPage)
    return found


def facts(found: ConceptPage) -> dict[str, float]:
    return {f.name: f.value for f in found.facts if not isinstance(f.value, str)}


def run(*words: str) -> tuple[str, str, int]:
    done = CliRunner().invoke(app, list(words))
    return done.stdout, done.stderr, done.exit_code


def check_command(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "nanogpt"
    known = {flag for p in lazy.load(words[1]).params for flag in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known
    for at, word in enumerate(words):
        if word == "--set":
            section, _, rest = words[at + 1].partition(".")
            assert rest.partition("=")[0] in problems.keys()[section]


@pytest.mark.parametrize("name", registry.CONCEPTS)
def test_a_page_fits_a_screen_and_its_commands_exist(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out, err, code = run("explain", name, "--n-layer", "48")
    assert code == 0
    assert err.startswith("next: nanogpt ")
    assert out.startswith(f"{name}: ")
    lines = out.splitlines()
    assert len(lines) + len(err.splitlines()) <= 30
    assert max(map(len, lines)) <= 100
    assert not re.search(r"[{}]|\bnan\b", out)
    for action in page(name, SMALL).actions:
        check_command(action.command)
    assert all(math.isfinite(value) for value in facts(page(name, SMALL)).values())


@pytest.mark.parametrize("name", registry.CONCEPTS)
def test_texts_type_no_number_that_is_computed(name: str) -> None:
    """Numerals that stay are formulas, names and years; results are fields."""
    known = (
        r"GPT-2|gpt2|0\.02|1/√|√\(2/\(5d\)\)|√\(2L\)|sqrt\(2/|8/3 d|ln 2|1/V|1/√m|β₂|β₂ =|5d|Qwen3|"
    )
    known += r"\((?:Press & Wolf|Yang et al\.) \d{4}\)|step 1\b|Step 1|ReLU2|mean gradient 0|2nd|"
    known += r"below 1\)|Schritt 1|float32|all about 1|step 100\b|step 10\b|bis zu 1|0,02|"
    known += r"weight \*= 0\.02"
    for words in registry.concept_of(name).words.values():
        for text in (*words.paragraphs, *words.after, *(c.why for c in words.claims)):
            typed = re.sub(known, "", re.sub(r"\{[^}]*\}", "", text))
            assert not re.search(r"\d", typed), typed


def verdicts(shape: Shape) -> dict[str, str]:
    return dict(zip(CLAIMS, (c.verdict for c in page("init", shape).claims), strict=True))


def drawn(**laws: str) -> Shape:
    scheme = schemes.parse_custom({"base": "gpt2", **laws})
    return Shape(given=Shape(12, 768).model().with_scheme(scheme))


def test_gpt2_refutes_what_is_claimed_of_it() -> None:
    assert verdicts(Shape()) == {
        "times": FALSE, "root": FALSE, "width": FALSE, "relu": TRUE, "variance": HALF,
        "warmup": FALSE,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "shape", "verdict"),
    [
        ("times", Shape(init="proj-x0.02"), TRUE),
        ("root", Shape(init="proj-sqrt2L"), TRUE),
        ("width", drawn(linear="normal(0.02 / sqrt(d))"), TRUE),
        ("relu", Shape(given=Shape().model().changed(activation="relu")), FALSE),
        ("variance", Shape(init="zero-proj"), TRUE),
        ("variance", Shape(init="normal"), FALSE),
        ("warmup", Shape(init="kaiming"), HALF),
    ],
)
def test_verdicts_follow_the_model(claim: str, shape: Shape, verdict: str) -> None:
    """A scheme that does what the claim says turns the verdict."""
    assert verdicts(shape)[claim] == verdict


@pytest.mark.numeric
def test_what_init_says_is_measured_on_a_model_that_is_built() -> None:
    said = facts(page("init"))
    config = GPTConfig(2, 1, 64, 1024, 50304, 0.0, bias=False, activation="gelu")
    model = build(config, schemes.get("gpt2"), seed=0)
    of = {name: p.detach() for name, p in model.named_parameters()}
    for fact, name in (("fc_std", "h.0.mlp.c_fc.weight"), ("proj_std", "h.1.mlp.c_proj.weight")):
        values_ = of[f"transformer.{name}"].numpy()
        assert said[fact] == pytest.approx(values_.std(), rel=6 / math.sqrt(2 * values_.size))
    assert said["times_002"] == pytest.approx(0.02 * 0.02)
    assert said["sqrt_2L"] == pytest.approx(2 * said["proj_std"])
    assert said["per_width"] == pytest.approx(0.02 / 8)
    # Adam's first step moves every weight by the learning rate.
    weight = torch.nn.Parameter(of["transformer.h.0.mlp.c_proj.weight"].clone())
    optimizer = torch.optim.AdamW([weight], lr=said["lr"], weight_decay=0.0)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    before = weight.detach().clone()
    optimizer.step()
    moved = float((weight.detach() - before).square().mean().sqrt()) / float(before.std())
    assert said["step_proj"] == pytest.approx(moved, rel=6 / math.sqrt(2 * before.numel()))
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(50304, (4, 65), generator=rng)
    with torch.no_grad():
        logits, _ = model(ids[:, :-1], ids[:, 1:])
    flat = logits.double()
    loss = (flat.logsumexp(-1) - flat.mean(-1)).mean()  # over all targets
    # One draw of 64 channels: sizes scatter by about 1/√(2·64) of themselves.
    assert said["excess"] == pytest.approx(float(loss) - math.log(50304), abs=0.01)
    assert said["logit_std"] == pytest.approx(float(flat.std(-1).mean()), rel=0.15)


@pytest.mark.parametrize("name", ["small", "deep"])
def test_german_says_what_english_says(name: str) -> None:
    shape = SMALL if name == "small" else Shape(48)
    english, german = page("init", shape), page("init", shape, "de")
    assert (english.language, german.language) == ("en", "de")
    assert facts(english) == facts(german)
    assert [c.verdict for c in english.claims] == [c.verdict for c in german.claims]
    number = re.compile(r"\d+(?:[.,]\d+)?(?:e-\d+)?")

    def numbers(text: str) -> list[str]:
        return sorted(n.replace(",", ".") for n in number.findall(text))

    for mine, theirs in zip(english.claims, german.claims, strict=True):
        assert numbers(mine.why) == numbers(theirs.why)
        assert {f.name for f in mine.facts} == {f.name for f in theirs.facts}
    for row, other in zip(english.table, german.table, strict=True):
        assert numbers(" ".join(row)) == numbers(" ".join(other))
    assert english.picture
    assert german.picture
    curves = [[c.values for c in p.curves] for p in (english.picture, german.picture)]
    assert curves[0] == curves[1]
    text = " ".join(c.why for c in german.claims)
    assert " %" in text  # German typography
    assert "%" not in text.replace(" %", "")


def test_german_on_the_screen_and_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out, err, code = run("explain", "init", "--lang", "de", "--n-layer", "2", "--n-embd", "64")
    assert code == 0
    assert "Oft behauptet" in out
    assert "falsch" in out
    assert "English only" not in err
    assert len(out.splitlines()) + len(err.splitlines()) <= 30
    _, err, code = run("explain", "resume", "--lang", "de", "--n-layer", "2", "--n-embd", "64")
    assert code == 0
    assert "the topic resume exists in English only" in err


@pytest.mark.numeric
@pytest.mark.parametrize("name", [*activation.ACTIVATIONS, "gelu_tanh", "geglu"])
@pytest.mark.parametrize("variance", [0.05, 0.307, 2.0])
def test_moments_of_activations_agree_with_torch(name: str, variance: float) -> None:
    """Beside values and gradients by autograd on 400,000 draws, and the kernels of the theory."""
    found = activation_moments.moments(name, variance)
    rng = torch.Generator().manual_seed(0)
    n = 400_000
    x = (torch.randn(n, generator=rng, dtype=torch.float64) * math.sqrt(variance)).requires_grad_()
    v = (torch.randn(n, generator=rng, dtype=torch.float64) * math.sqrt(variance)).requires_grad_()
    gate = {"swiglu": "silu", "geglu": "gelu"}.get(name)
    y = ACTIVATIONS[gate or name](x) * (v if gate else 1)
    grads = torch.autograd.grad(y.sum(), [x, v] if gate else [x])
    size = y.detach().square().mean()
    close = 12 / math.sqrt(n)  # heavy tails of squares and products
    assert found.second == pytest.approx(float(size), rel=2 * close)
    silent = float((y.detach().abs() < activation_moments.SILENT * size.sqrt()).double().mean())
    assert found.silent == pytest.approx(silent, abs=close / 4)
    assert found.slope == pytest.approx(float(grads[0].mean()), abs=close)
    squares = sum(float(g.square().mean()) for g in grads)
    assert found.slope_rms == pytest.approx(math.sqrt(squares), rel=close)
    if name in kernels.KERNELS:
        value, slope = kernels.KERNELS[name](torch.tensor([[variance]], dtype=torch.float64))
        # ReLU² has a corner in its slope; a cell of the quadrature is 1/125 wide.
        assert found.second == pytest.approx(float(value), rel=1e-4)
        assert found.slope_rms**2 == pytest.approx(float(slope), rel=1e-2)


def test_the_bundled_measurement_and_the_table() -> None:
    bundled = activation.measured()
    assert bundled["losses"].keys() == set(activation.ACTIVATIONS)
    said = facts(page("activation"))
    for name, losses in bundled["losses"].items():
        assert len(losses) == 3
        assert said[f"{name}_loss"] == pytest.approx(statistics.fmean(losses))
        # What no model of 65 characters exceeds at the start, and none reaches in so few steps.
        assert all(1.5 < loss < math.log(65) for loss in losses)
    check_command(bundled["command"].partition(" (")[0].replace("NAME", "relu"))
    assert f"train.max_steps={bundled['conditions']['steps']}" in bundled["command"]
    best = min(bundled["losses"], key=lambda name: statistics.fmean(bundled["losses"][name]))
    assert activation._LABELS[best] in page("activation").after[1]
    log = (Path(activation.__file__).parents[1] / "docs" / "experiments.md").read_text()
    for name, label in activation._LABELS.items():
        row = re.search(rf"^\| {re.escape(label)} \|(.*)$", log, re.M)
        assert row, label
        found = [float(x) for x in re.findall(r"\d\.\d{3}", row[1])[:3]]
        assert found == pytest.approx([round(x, 3) for x in bundled["losses"][name]])


def test_scale_at_the_start_grows_with_std_and_depth() -> None:
    said = facts(page("std"))
    for n, std in enumerate(depth.STDS):
        # The last norm's ε takes from the size of a stream that is small.
        stream = depth.with_std(SMALL.model(), std).start().stream_rms[-1]
        size = 1 / math.sqrt(1 + 1e-5 / stream**2)
        assert said[f"logits{n}"] == pytest.approx(std * math.sqrt(64) * size, rel=0.01)
    assert said["same_width"] == pytest.approx(2 / (5 * 0.02**2))
    said = facts(page("residual-scaling"))
    grown = [said[f"growth{n}"] for n in range(4)]
    plain = [said[f"plain_growth{n}"] for n in range(4)]
    assert max(grown) / min(grown) < 1.1  # independent of depth
    assert plain[-1] / plain[0] > 3  # as √depth, of 24 times the depth
    assert said["plain"] / said["proj"] == pytest.approx(math.sqrt(4))
    # The share that the last block writes, from the stream alone: branches are nearly independent.
    stream = Shape(12, 64).model().start().stream_rms
    written = 1 - (stream[-2] / stream[-1]) ** 2
    assert said["share1"] == pytest.approx(written, rel=0.15)


def test_warmup_by_numpy_and_by_the_schedule() -> None:
    said = facts(page("warmup"))
    assert said["lr"] == Optim().lr
    first = Optim().lr / (Optim().warmup_steps + 1)
    assert said["wte_first"] == pytest.approx(first / 0.02)
    assert said["mlp_proj_peak"] == pytest.approx(Optim().lr * math.sqrt(4) / 0.02)
    beta = Optim().betas[1]
    for n in (1, 10, 100):
        weights = beta ** np.arange(n)
        assert said[f"batches{n}"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    picture = page("warmup").picture
    assert picture
    assert max(picture.curves[0].values) == pytest.approx(Optim().lr, rel=1e-6)


@pytest.mark.numeric
def test_muon_by_singular_values_and_counted_products() -> None:
    said, picture = facts(page("muon")), page("muon").picture
    assert picture
    gradient, update = (np.array(curve.values) for curve in picture.curves)
    assert said["smallest"] == pytest.approx(gradient[-1] / gradient[0])
    assert (said["low"], said["high"]) == (update.min(), update.max())
    # Within 0.12 of 1 for values above a thousandth of the norm, as orthogonalize says.
    assert abs(update - 1).max() < 0.12
    steps_ = Optim().ns_steps
    for rows, columns in ((64, 64), (64, 256)):
        with FlopCounterMode(display=False) as counter:
            schedule = newton_schulz.polynomials(steps_)
            newton_schulz._plainly(torch.eye(rows, columns)[None], schedule)
        assert steps.muon_cost(columns, rows, steps_) == counter.get_total_flops()
    with torch.device("meta"):
        model = GPT(Shape(2, 64).model().config)
    blocks = [p for n, p in model.named_parameters() if ".h." in n and p.dim() == 2]
    assert steps.block_parameters(model.config) == sum(p.numel() for p in blocks)
    both = sum(p.numel() for p in model.parameters())
    assert said["share"] == pytest.approx(steps.block_parameters(model.config) / both)
    assert said["adamw_bytes"] - said["muon_bytes"] == pytest.approx(
        4 * sum(p.numel() for p in blocks) / 2**20
    )


@pytest.mark.parametrize("part", parts.PARTS)
def test_sizes_are_those_of_models_that_are_built(part: str) -> None:
    model = Shape(2, 256).model()
    config = model.changed(**parts.changes(model)[part]).config
    said = facts(page("modern", Shape(2, 256)))
    with torch.device("meta"):
        made = GPT(config)
    assert said[f"{part}_size"] * 1e6 == sum(p.numel() for p in made.parameters())
    # Keys and values of a position: what all but the queries' rows of the matrices yield.
    rows = {n: p.shape[0] for n, p in made.named_parameters() if "h.0" in n or "layers.0" in n}
    fused = [r for n, r in rows.items() if n.endswith("c_attn.weight")]
    kv = fused[0] * 2 // 3 if fused else sum(
        r for n, r in rows.items() if n.endswith(("k_proj.weight", "v_proj.weight"))
    )  # fmt: skip
    assert said[f"{part}_cache"] == pytest.approx(4 * 2 * kv * 1024 / 2**20)


def test_tying_counts_what_is_built_and_what_the_loss_says() -> None:
    said = facts(page("tying"))
    sizes = {}
    for name, tied in (("tied", True), ("untied", False)):
        with torch.device("meta"):
            made = GPT(SMALL.model().changed(tied=tied).config)
        sizes[name] = sum(p.numel() for p in made.parameters())
        assert said[f"{name}_size"] * 1e6 == sizes[name]
    assert said["share"] == pytest.approx(1 - sizes["tied"] / sizes["untied"])
    assert said["untied_p"] == pytest.approx(said["uniform"], rel=1e-6)
    assert said["tied_p"] > 1.5 * said["uniform"]


def test_mup_keeps_what_it_says() -> None:
    said = facts(page("mup"))
    for name in ("step", "scores", "stream"):
        mup = [said[f"mup_{name}{n}"] for n in range(3)]
        plain = [said[f"{name}{n}"] for n in range(3)]
        assert max(mup) / min(mup) < 1.02
        assert plain[-1] / plain[0] > 10
    m = width.WIDTHS[-1] / said["base"]
    assert said["mup_logits0"] / said["mup_logits2"] == pytest.approx(math.sqrt(m), rel=0.01)
    assert said["mup_std0"] / said["mup_std2"] == pytest.approx(math.sqrt(m))


def test_bits_per_byte_by_counting() -> None:
    said = facts(page("bits-per-byte"))
    text = measures.sample_text()
    assert said["bytes"] == len(text.encode())
    assert said["byte_each"] == 1
    assert said["char_words"] == len(set(text))
    assert said["char_each"] == pytest.approx(len(text.encode()) / len(text))
    assert said["byte_guess_bits"] == pytest.approx(8)
    assert said["char_guess_bits"] == pytest.approx(
        math.log2(len(set(text))) * len(text) / len(text.encode())
    )
    for name in measures.TOKENIZERS:  # the column holds losses of one quality
        loss, each = said[f"{name}_loss"], said[f"{name}_each"]
        assert measures.bits_per_byte(loss, each) == pytest.approx(said["bits"])
    assert said["lzma"] < said["zlib"] < 8


def test_resume_counts_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    same, total = measures.windows_alike(5)
    assert same == total == 60
    from nanogpt_cli.training import batches

    # A planted state: windows that depend on how many were asked for before.
    asked = []
    honest = batches.Windows.at

    def stateful(self: batches.Windows, index: np.ndarray) -> np.ndarray:
        asked.append(len(index))
        return honest(self, index + len(asked))

    monkeypatch.setattr(batches.Windows, "at", stateful)
    same, total = measures.windows_alike(5)
    assert same < total
    said = facts(page("resume"))
    assert said["checkpoint"] == pytest.approx(said["weights"] + said["moments"])
    muon = Model(SMALL.model().config, schemes.get("gpt2"), optim=Optim(name="muon"))
    assert facts(page("resume", Shape(given=muon)))["moments"] < said["moments"]


def test_the_model_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(smallest.recipe())
    found = json.loads(run("explain", "init", "toy.toml", "--json")[0])
    assert found["model"].startswith("recipe toy.toml: ")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/recipe.toml").write_text(smallest.recipe(model={"n_layer": 3}))
    Path("runs/mine/events.jsonl").write_text("")
    theirs = subject.shape("", "mine", [], {}).model()
    assert theirs.config.n_layer == 3
    folder = Path("hf")
    folder.mkdir()
    config = {"model_type": "gpt2", "n_layer": 5, "n_head": 2, "n_embd": 32, "n_positions": 16,
              "vocab_size": 99}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    out, _, code = run("explain", "growth", "--from", "hf", "--json")
    assert code == 0
    told = {fact["name"]: fact["value"] for fact in json.loads(out)["facts"]}
    assert (told["model_layers"], told["model_width"]) == (5, 32)
    changed = subject.shape("", "", ["model.n_layer=7"], {}).model()
    assert changed.config.n_layer == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init", "--from", "x", "--n-layer", "2"), "--from defines the model itself"),
        (("init", "--from", "nowhere"), "no run 'nowhere'"),
        (("init", "--init", "gtp2"), "there is no scheme 'gtp2'"),
        (("init", "--lang", "fr"), "--lang: there is no page in 'fr'"),
        (("inti",), "there is no topic 'inti'"),
        (("init", "no-such-recipe"), "no-such-recipe"),
        (("init", "--set", "model.n_layers=3"), "n_layers"),
    ],
)
def test_bad_input_is_one_clear_message(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["explain", *words])
    assert done.exit_code != 0
    assert isinstance(done.exception, (UserError, SystemExit))
    assert said in f"{done.exception} {done.stderr}"
    assert "Traceback" not in done.stderr


def test_topics_without_theory_do_not_import_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from nanogpt_cli.cli import app\n"
        "for name in ('activation', 'bits-per-byte'):\n"
        "    assert CliRunner().invoke(app, ['explain', name]).exit_code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    _, said = programs.finish(programs.start([sys.executable, "-c", program]))
    assert said == b""


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("name", registry.CONCEPTS)
def test_a_narrow_screen_loses_no_number(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out, _, _ = run("explain", name, "--n-layer", "2", "--n-embd", "64")
    table = page(name).table
    numeric = [row for row in table[1:] if re.match(r"[×\d]", row[-1])]
    for row in numeric:
        for cell in row[1:]:
            assert re.search(rf"(^|\s){re.escape(cell)}(\s|$)", out), cell
    if numeric:
        assert all(len(line) <= columns for line in out.splitlines() if re.search("×", line))


def test_a_scheme_of_zeros_is_told_without_numbers_that_are_none() -> None:
    for name in registry.CONCEPTS:
        out, _, code = run("explain", name, "--init", "zero-proj", "--n-layer", "2")
        assert code == 0
        assert not re.search(r"\binf|\bnan\b", out)
    assert "∞" in run("explain", "warmup", "--init", "zero-proj", "--n-layer", "2")[0]


def test_values_are_kept_apart_by_scheme() -> None:
    """Two schemes of one name, as two custom ones are, do not share what was computed."""
    model = values.Shape(2, 64).model()
    small, large = (depth.with_std(model, std).start().stream_rms[0] for std in (0.01, 0.04))
    assert large / small == pytest.approx(4)


def test_what_the_first_page_says_of_the_scheme_holds_for_that_scheme() -> None:
    small = ("--n-layer", "8", "--n-embd", "64")
    for scheme, sum_of_branches, neutral in (
        ("gpt2", "does not depend on L", True),
        ("normal", "depends on L", True),
        ("pytorch", "depends on L", False),  # its biases are drawn
        ("zero-proj", "does not depend on L", True),
    ):
        out, _, code = run("explain", "init", "--init", scheme, *small, "--json")
        assert code == 0
        *_, projections, offsets = (row[2] for row in json.loads(out)["table"])
        assert projections == f"the sum of 16 branches {sum_of_branches}", scheme
        assert offsets.startswith("neutral at the start") is neutral, scheme


def test_one_of_a_kind_is_singular_and_small_growths_keep_a_decimal() -> None:
    out, _, _ = run("explain", "init", "--n-layer", "1", "--n-embd", "64")
    assert "GPT-2: 1 layer of 64 channels" in out
    ours, plain = re.findall(r"×([\d.]+)", out)[:2]
    assert float(ours) < float(plain)
    out, _, _ = run("explain", "init", "--n-layer", "1", "--n-embd", "1", "--lang", "de")
    assert "GPT-2: 1 Schicht mit je 1 Kanal" in out


def test_models_that_cannot_be_explained_are_refused_in_this_commands_words(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("x")
    for arguments, message, hint in (
        (("--n-layer", "100000000000"), "model.n_layer = 100000000000: input", ""),
        (("--set", "model.n_layer=100000000000"), "model.n_layer = 100000000000: input", ""),
        (("--set", "optim.lr=abc"), "the command line has a problem", ""),
        (("--from", str(tmp_path / "plain.txt")), "--from: no run", "a Hugging Face folder"),
    ):
        error = CliRunner().invoke(app, ["explain", "init", *arguments]).exception
        assert isinstance(error, UserError)
        assert message in error.message
        assert hint in error.hint
        assert "--out" not in error.hint
        assert "init-inspect" not in error.message
