"""``nanogpt init-inspect``: inspect a GPT before its first step, by theory and measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.cli import init_inspect_input as inputs
from nanogpt_cli.cli import init_inspect_output as output
from nanogpt_cli.cli import init_inspect_studies as studies
from nanogpt_cli.cli.init_inspect_input import InspectOptions, Subject
from nanogpt_cli.cli.options import LARGEST_SEED
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

# The most tokens that theory is computed on, for the first screen and beside a measurement.
_QUICK, _BESIDE = 128, 512

Text = Annotated[str, typer.Option(metavar="NAME")]


@dataclass(frozen=True)
class Files:
    """Files to write, and whether to open the dashboard."""

    csv: Path | None
    png: Path | None
    svg: Path | None
    tui: bool


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init-inspect")(init_inspect)


def init_inspect(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="A recipe's name or file.")
    ] = "",
    n_layer: Annotated[int | None, typer.Option(help="Blocks.", rich_help_panel="Model")] = None,
    n_embd: Annotated[int | None, typer.Option(help="Channels.", rich_help_panel="Model")] = None,
    n_head: Annotated[
        int | None, typer.Option(help="Heads (of 64).", rich_help_panel="Model")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Context length.", rich_help_panel="Model")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Embedding rows.", rich_help_panel="Model")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Scheme; see --list.", rich_help_panel="Model")
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="gelu, gelu_tanh, relu, relu2, silu, swiglu", rich_help_panel="Model"),
    ] = None,
    bias: Annotated[
        bool | None, typer.Option("--bias/--no-bias", help="Biases.", rich_help_panel="Model")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(help="gpt2, gpt2-medium, gpt2-large, gpt2-xl", rich_help_panel="Model"),
    ] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key.", rich_help_panel="Model"),
    ] = None,
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="WHERE",
            help="Existing weights: a run, checkpoint, Hugging Face folder, ckpt.pt, or "
            "module:factory of a torch module (runs that code).",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of weights and tokens.")] = 0,
    data: Annotated[
        str,
        typer.Option(
            "--input",
            help="random, a prepared folder or a data set's name; by default a recipe's own data "
            "if they are prepared, else random.",
        ),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option("--tokens", min=2, help="Tokens per sequence.")] = 256,
    gradients: Annotated[
        bool, typer.Option("--gradients/--no-gradients", help="Gradients as well.")
    ] = True,
    theory_only: Annotated[
        bool, typer.Option("--theory", help="Theory only, in about a second.")
    ] = False,
    full: Annotated[bool, typer.Option("--all", help="Every tensor, not only classes.")] = False,
    hist: Annotated[bool, typer.Option("--hist", help="Histograms of activations.")] = False,
    compare: Annotated[
        str, typer.Option(metavar="A,B,…", help="Schemes side by side.", rich_help_panel="Studies")
    ] = "",
    ablate: Annotated[
        str,
        typer.Option(
            metavar="A,…", help="residual-scale, tying, ln, bias", rich_help_panel="Studies"
        ),
    ] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure each as well.", rich_help_panel="Studies")
    ] = False,
    scan: Annotated[str, typer.Option(help="depth, width", rich_help_panel="Studies")] = "",
    coord_check: Annotated[
        bool,
        typer.Option(
            "--coord-check", help="First Adam steps over widths.", rich_help_panel="Studies"
        ),
    ] = False,
    widths: Annotated[
        str, typer.Option(help="For --coord-check.", rich_help_panel="Studies")
    ] = "64,128,256",
    list_schemes: Annotated[bool, typer.Option("--list", help="All schemes.")] = False,
    lint: Annotated[bool, typer.Option("--lint", help="Exit code 1 on a failed check.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON.", rich_help_panel="Output")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Depth table as CSV.", rich_help_panel="Output")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Picture; needs [plot].", rich_help_panel="Output")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Picture; needs [plot].", rich_help_panel="Output")
    ] = None,
    tui: Annotated[
        bool, typer.Option("--tui", help="Open the Layers view.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Show how signals and gradients pass through a GPT before its first training step.

    Expected values come from theory, without weights. Measured ones come from the weights that
    `nanogpt train` starts from, drawn block by block, with two blocks in memory.
    """
    if list_schemes:
        studies.list_schemes(as_json)
        console.next_command("nanogpt init-inspect --init gpt2 --compare normal,pytorch")
        return
    options: dict[str, Any] = {
        **{"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "block_size": block_size},
        **{"vocab_size": vocab_size, "init": init, "activation": activation, "bias": bias},
    }
    ask = InspectOptions(seed, data, batch, length, gradients, theory_only, full, hist, as_json)
    subject, tokenizer = inputs.subject(recipe, preset, sets or [], options, origin, seed, data)
    ask = replace(ask, data=data or subject.data)
    if compare or ablate:
        studies.side_by_side(subject, ask, tokenizer, compare, ablate, measure)
    elif scan:
        studies.scan(subject, scan, as_json)
    elif coord_check:
        studies.coordinates(subject, widths, seed, as_json, lint)
    else:
        files = Files(csv, png, svg, tui)
        failed = inspect(subject, ask, tokenizer, files) and lint
        console.next_command("nanogpt init-inspect --compare normal,pytorch,mup")
        raise typer.Exit(1 if failed else 0)
    name = subject.scheme.name if subject.scheme else "custom"
    name = "gpt2" if name == "custom" else name  # a custom scheme cannot be requested by name
    console.next_command(shell.command("train", "small", *shell.setting("model.init", name)))


def inspect(subject: Subject, ask: InspectOptions, tokenizer: str, files: Files) -> bool:
    """Print the whole inspection and write files; returns whether a check failed.

    Raises:
        UserError: something cannot be read or computed, or (after the page is printed) the weights
            contain NaN or infinity.
    """
    from nanogpt_cli.init import lint, scope

    scope.check(subject.config)
    for path in (files.png, files.svg):
        if path:
            output.check_picture(path)
    if not ask.theory_only:
        inputs.check_memory(subject.config)
    idx, targets, label = inputs.tokens(
        subject.config, ask.data, ask.batch, ask.length, ask.seed, tokenizer
    )
    quiet = ask.as_json
    if not quiet:
        output.header(subject, label, ask.seed)
    expected = _theory(subject, idx, targets, ask, quiet)
    found = None
    if not ask.theory_only or expected is None:
        found = _measure(subject, idx, targets, ask)
        expected = _beside(subject, idx, targets, ask)
        if not quiet:
            output.measured(subject, found, expected, n_tokens=idx.numel(), full=ask.full)
    elif not quiet:
        output.declared(subject, expected)
    verdicts = _judge(subject, expected, found)
    if not quiet:
        output.judge(verdicts)
    _write(files, subject, expected, found, verdicts)
    if quiet:
        console.emit_json(output.as_json(subject, expected, found, verdicts))
    _refuse_broken(found)
    return lint.worst(verdicts) == lint.FAIL


def _refuse_broken(found: Inspection | None) -> None:
    broken = [t.key for t in found.tensors if not t.finite] if found else []
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise UserError(
            f"{broken[0]}{more} contains NaN or infinity: these weights cannot run",
            "the tables show up to which block signals are finite; try an earlier checkpoint",
        )


def _theory(
    subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions, quiet: bool
) -> Signals | None:
    """Expected signals on some of the tokens, printed at once; ``None`` without a scheme."""
    from nanogpt_cli.init.theory import expect

    if subject.scheme is None:
        return None
    begin = time.perf_counter()
    part = slice(0, 1), slice(0, _QUICK)
    expected = expect(
        subject.config, subject.scheme, idx[part], targets[part], backward=ask.gradients
    )
    if not quiet:
        output.theory(expected, subject.config.vocab_size, time.perf_counter() - begin)
    return expected


def _beside(subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions) -> Signals | None:
    """Expected signals on the tokens that are measured.

    If these are too many for theory, only the first are used: gradients of the mean loss over N
    tokens are then rescaled, and those of weights, which depend on all tokens jointly, left out.
    """
    from nanogpt_cli.init.theory import expect

    if subject.scheme is None:
        return None
    n = idx.numel()
    part = (slice(None), slice(None)) if n <= _BESIDE else (slice(0, 1), slice(0, _BESIDE))
    idx, targets = idx[part], targets[part]
    found = expect(subject.config, subject.scheme, idx, targets, backward=ask.gradients)
    if idx.numel() < n:
        found.grad_rms = [g * idx.numel() / n for g in found.grad_rms]
        found.weight_grad = {}
    return found


def _measure(subject: Subject, idx: Tensor, targets: Tensor, ask: InspectOptions) -> Inspection:
    from nanogpt_cli.init.inspect import measure

    with console.progress_bar("measuring") as report:
        return measure(
            subject.source,
            idx,
            targets,
            backward=ask.gradients,
            histograms=ask.hist,
            progress=report,
        )


def _judge(subject: Subject, expected: Signals | None, found: Inspection | None) -> list[Verdict]:
    from nanogpt_cli.init import detect, lint, lint_signals
    from nanogpt_cli.init.study import shallow_growth
    from nanogpt_cli.init.tensor_stats import by_class

    if subject.scheme is None:
        assert found is not None
        return detect.judge(found.tensors, found.signals, subject.config, trained=subject.trained)
    signals = found.signals if found else expected
    assert signals is not None
    beside, shallow = expected if found else None, shallow_growth(subject.config, subject.scheme)
    classes = by_class(found.tensors) if found else []
    return lint.on_scheme(subject.scheme, classes) + lint_signals.on_signals(
        signals, subject.config, beside, shallow
    )


def _write(
    files: Files,
    subject: Subject,
    expected: Signals | None,
    found: Inspection | None,
    verdicts: list[Verdict],
) -> None:
    if files.csv:
        output.write_csv(files.csv, expected, found)
        console.say(f"wrote {files.csv}")
    for path in (files.png, files.svg):
        if path:
            c, scheme = subject.config, subject.scheme
            title = f"{subject.label}: {c.n_layer} layers × {c.n_embd} channels"
            title += f", init {scheme.name}" if scheme else ""
            signals = found.signals if found else None
            output.draw_picture(path, title, signals, expected, verdicts)
            console.say(f"wrote {path}")
    if files.tui:
        output.open_dashboard(subject, found.signals if found else None, expected)
