"""``nanogpt import``: turn another tool's checkpoint into a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli import foreign_files, shell
from nanogpt_cli.cli import chosen_data, console, options
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.interop import LoadedModel
    from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="import")(import_)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder of a GPT-2, Llama, Qwen2 or Qwen3, a hub id (gpt2), "
            "nanoGPT's ckpt.pt, or a .bin of llm.c."
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", help="Name of the run; from SOURCE by default.")
    ] = "",
    out: options.RunsFolder = RUNS,
    meta: Annotated[
        Path | None,
        typer.Option("--meta", help="nanoGPT's meta.pkl, if it is in another folder.",
                     show_default=False),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", metavar="KIND|FILE", help="Instead of the one found: gpt2, "
                     "byte, or a tokenizer.json.", show_default=False),
    ] = "",
    data: Annotated[
        str, typer.Option("--data", help="Data set for eval and further training.")
    ] = "shakespeare",
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Make a run folder from another tool's checkpoint.

    sample, eval, export and init-inspect --from accept it. To fine-tune it, use
    nanogpt train runs/NAME/recipe.toml --from runs/NAME.
    Nothing in the file is executed.
    """
    from nanogpt_cli.interop import importing
    from nanogpt_cli.run.folder import check_name

    if name:  # before a model is fetched
        check_name(name, how=": --name NAME")
    chosen_data.checked(data)
    chosen = _tokenizer(tokenizer)
    found = _read(source, meta, chosen)
    for note in found.notes:
        console.say(note)
    run = importing.make_run(
        found, name=name or importing.run_name(source), out=out, source=source,
        data={"name": data} | chosen_data.as_prepared(data), tokenizer=chosen,
    )  # fmt: skip
    config = found.model.config
    console.say(
        f"{console.count(found.model.n_parameters())} parameters, {config.n_layer} "
        f"layer{'s' * (config.n_layer > 1)}, "
        f"activation {config.activation}, biases {'yes' if config.bias else 'no'}"
    )
    if as_json:
        console.emit_json({"run": str(run.path), "step": found.step, "notes": list(found.notes),
                           "model": config.to_dict()})  # fmt: skip
    else:
        typer.echo(run.path)
    if chosen or found.tokenizer:
        console.next_command(shell.command("sample", run.path))
    else:  # text can be neither read nor written
        console.next_command(shell.command("init-inspect", "--from", run.path))


def _read(source: str, meta: Path | None, tokenizer: Tokenizer | None) -> LoadedModel:
    from nanogpt_cli.interop import importing, opening

    if foreign_files.present(Path(source)) or Path(source).suffix in (".pt", ".bin"):
        return importing.read(Path(source), meta, tokenizer=tokenizer)
    return opening.resolve(source, tokenizer=tokenizer, report=console.say)


def _tokenizer(text: str) -> Tokenizer | None:
    if not text:
        return None
    from nanogpt_cli.text.tokenizers import factory

    return factory.get(text)
