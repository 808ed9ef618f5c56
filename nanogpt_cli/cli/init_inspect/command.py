"""``nanogpt init-inspect``: inspect a GPT before its first step, by theory and measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.cli.init_inspect import any_module, gpt_page, step_studies, studies
from nanogpt_cli.cli.init_inspect import subject as inputs
from nanogpt_cli.cli.init_inspect.subject import InspectOptions, Subject
from nanogpt_cli.cli.init_inspect.written import Files
from nanogpt_cli.cli.options import LARGEST_SEED
from nanogpt_cli.cli.unswept import unswept
from nanogpt_cli.errors import UserError

Text = Annotated[str, typer.Option(metavar="NAME")]


_LEVELS = ("warn", "fail")


class _WithLint(TyperCommand):
    """A command whose option ``--lint`` may stand alone, for ``--lint=fail``.

    Typer has options with a value and options without, but none with an optional value.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        end = given.index("--") if "--" in given else len(given)
        if "--lint" in given[:end]:
            at = given.index("--lint")
            valued = given[at + 1 : at + 2] in ([level] for level in _LEVELS)
            given[at : at + 1 + valued] = [f"--lint={given[at + 1] if valued else 'fail'}"]
        return super().parse_args(ctx, given)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init-inspect", cls=_WithLint)(init_inspect)


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
            help="A run, checkpoint, ckpt.pt, a Hugging Face folder or config.json of any "
            "architecture, or module:factory of a torch module (runs that code).",
            rich_help_panel="Other models and data",
        ),
    ] = "",
    structure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML that corrects the structure found in such a module.",
            rich_help_panel="Other models and data",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of weights and tokens.")
    ] = 0,
    data: Annotated[
        str,
        typer.Option(
            "--input",
            help="random, a prepared folder or a data set's name; by default a recipe's own data "
            "if they are prepared, else random.",
            rich_help_panel="Other models and data",
        ),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option("--tokens", min=2, help="Tokens per sequence.")] = 256,
    gradients: Annotated[
        bool, typer.Option("--gradients/--no-gradients", help="Gradients.")
    ] = True,
    theory_only: Annotated[bool, typer.Option("--theory", help="Theory only (a second).")] = False,
    details: Annotated[bool, typer.Option("--details", help="Every table.")] = False,
    full: Annotated[bool, typer.Option("--all", help="Every tensor.")] = False,
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
        typer.Option("--coord-check", help="First steps over sizes.", rich_help_panel="Studies"),
    ] = False,
    over: Annotated[
        str, typer.Option(help="Check: width, depth", rich_help_panel="Studies")
    ] = "width",
    widths: Annotated[
        str, typer.Option(help="Checked widths.", rich_help_panel="Studies")
    ] = "64,128,256",
    depths: Annotated[
        str, typer.Option(help="Checked depths.", rich_help_panel="Studies")
    ] = "2,4,8,16",
    optimizer: Annotated[
        str, typer.Option(help="Check: adamw, muon", rich_help_panel="Studies")
    ] = "adamw",
    warmup: Annotated[
        bool,
        typer.Option("--warmup", help="Rate that needs none.", rich_help_panel="Studies"),
    ] = False,
    list_schemes: Annotated[bool, typer.Option("--list", help="All schemes.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON.", rich_help_panel="Output")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Depth table as CSV.", rich_help_panel="Output")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also .pdf; needs [plot].", rich_help_panel="Output")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Picture.", rich_help_panel="Output")] = None,
    tui: Annotated[
        bool, typer.Option("--tui", help="Open the Layers view.", rich_help_panel="Output")
    ] = False,
    lint: Annotated[
        str,
        typer.Option(
            "--lint",
            metavar="[=warn|fail]",
            help="Exit code 1 on ✗ (=warn: also !).",
            rich_help_panel="Output",
        ),
    ] = "",
) -> None:
    """Show how signals and gradients pass through a GPT before its first training step.

    Expected values come from theory, without weights. Measured ones come from the weights that
    `nanogpt train` starts from, drawn block by block, with two blocks in memory.
    """
    if list_schemes:
        studies.list_schemes(as_json)
        console.next_command("nanogpt init-inspect --init gpt2 --compare normal,pytorch")
        return
    if lint not in ("", *_LEVELS):
        raise UserError(f"--lint={lint}: unknown level", f"known: {', '.join(_LEVELS)}")
    options: dict[str, Any] = {
        **{"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "block_size": block_size},
        **{"vocab_size": vocab_size, "init": init, "activation": activation, "bias": bias},
    }
    ask = InspectOptions(
        seed, data, batch, length, gradients, theory_only, full, hist, as_json,
        details=details or full or hist,
    )  # fmt: skip
    given = _given(recipe, preset, sets or [], options, origin)
    files = Files(csv, png, svg, tui)
    if origin:
        inputs.check_alone(recipe, preset, sets or [], options)
        with unswept():
            found = any_module.open_origin(origin, init or "", seed, structure)
        if not isinstance(found, Subject):
            any_module.check_study(
                next((name for name, asked in (("--compare", compare), ("--ablate", ablate),
                      ("--scan", scan), ("--coord-check", coord_check), ("--warmup", warmup))
                      if asked), "")
            )  # fmt: skip
            _end(any_module.inspect(found, ask, structure, files), lint, _deeper(given, ask))
        subject, tokenizer = found, "gpt2"
    else:
        with unswept():
            subject, tokenizer = inputs.subject(recipe, preset, sets or [], options, seed, data)
    from nanogpt_cli.init.scope import beyond

    ask = replace(ask, data=data or subject.data)
    if compare or ablate:
        studies.side_by_side(subject, ask, tokenizer, compare, ablate, measure)
    elif scan:
        studies.scan(subject, scan, as_json)
    elif coord_check:
        scales = depths if over == "depth" else widths
        step_studies.coordinates(subject, over, scales, optimizer, seed, as_json, bool(lint))
    elif warmup:
        step_studies.warmup(subject, ask, tokenizer, bool(lint))
    elif beyond(subject.config) and not theory_only:
        built = any_module.of_subject(subject)
        _end(any_module.inspect(built, ask, None, files), lint, _deeper(given, ask))
    else:
        compared = subject.scheme is not None and not origin
        following = _others(given, subject) if compared else _deeper(given, ask)
        _end(gpt_page.inspect(subject, ask, tokenizer, files), lint, following)
    name = subject.scheme.name if subject.scheme else "custom"
    # A custom scheme cannot be requested by name: a recipe has it in a table of its own.
    asked = shell.settings(sets) if recipe else []
    if name != "custom" or not recipe:
        asked += shell.setting("model.init", "gpt2" if name == "custom" else name)
    console.next_command(shell.command("train", recipe or "small", *asked))


def _given(
    recipe: str, preset: str, sets: list[str], options: dict[str, Any], origin: str
) -> list[str]:
    """The arguments that name the model, for a proposal that is about the same one."""
    words = [recipe] if recipe else []
    for name, value in {"preset": preset or None, **options, "from": origin or None}.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words + [word for one in sets for word in ("--set", one)]


def _others(given: list[str], subject: Subject) -> str:
    """The command that compares the model's scheme with other ones."""
    assert subject.scheme is not None
    others = [n for n in ("gpt2", "normal", "pytorch", "mup") if n != subject.scheme.name]
    return shell.command("init-inspect", *given, "--compare", ",".join(others))


def _deeper(given: list[str], ask: InspectOptions) -> str:
    """The command that shows more of a model whose scheme cannot be varied."""
    if ask.details:
        return "nanogpt docs initialisation"
    return shell.command("init-inspect", *given, "--details")


def _end(worst: str, lint: str, following: str) -> NoReturn:
    """End with the exit code that ``--lint`` asks for, given the gravest severity of a verdict."""
    failed = lint and worst in ("fail", lint)
    console.next_command(following)
    raise typer.Exit(1 if failed else 0)
