"""``nanogpt init-inspect``: why a GPT trains, seen before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli.cli import console
from nanogpt_cli.cli.options import LARGEST_SEED

Text = Annotated[str, typer.Option(metavar="NAME")]


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
        str, typer.Option("--input", help="random, a prepared folder or a data set's name.")
    ] = "random",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option("--tokens", min=2, help="Tokens a sequence.")] = 256,
    gradients: Annotated[
        bool, typer.Option("--gradients/--no-gradients", help="Backward pass too.")
    ] = True,
    theory_only: Annotated[
        bool, typer.Option("--theory", help="Only what theory knows, in about a second.")
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

    Expected values come from theory, without weights. Measured ones come from weights drawn block
    by block, the very ones `nanogpt train` starts from; memory stays at two blocks.
    """
    from nanogpt_cli.cli import init_inspect_input as inputs
    from nanogpt_cli.cli import init_inspect_studies as studies
    from nanogpt_cli.cli import init_inspect_view as view

    if list_schemes:
        studies.list_schemes(as_json)
        console.next_command("nanogpt init-inspect --init gpt2 --compare normal,pytorch")
        return
    options: dict[str, Any] = {
        **{"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "block_size": block_size},
        **{"vocab_size": vocab_size, "init": init, "activation": activation, "bias": bias},
    }
    ask = view.Ask(seed, data, batch, length, gradients, theory_only, full, hist, as_json)
    subject, tokenizer = inputs.subject(recipe, preset, sets or [], options, origin, seed, data)
    if compare or ablate:
        studies.side_by_side(subject, ask, tokenizer, compare, ablate, measure)
    elif scan:
        studies.scan(subject, scan, as_json)
    elif coord_check:
        studies.coordinates(subject, widths, seed, as_json, lint)
    else:
        files = view.Files(csv, png, svg, tui)
        failed = view.inspect(subject, ask, tokenizer, files) and lint
        console.next_command("nanogpt init-inspect --compare normal,pytorch,mup")
        raise typer.Exit(1 if failed else 0)
    name = subject.scheme.name if subject.scheme else "custom"
    name = "gpt2" if name == "custom" else name  # a custom table has no name to ask for
    console.next_command(f"nanogpt train small --set model.init={name}")
