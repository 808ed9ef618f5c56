"""``nanogpt eval``: the loss of a model over a whole split."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import certificate, console, options, sources
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.cli.sources import LoadedModel
    from nanogpt_cli.text.proof.certificate import Certificate
    from nanogpt_cli.text.tokens import TokenData
    from nanogpt_cli.training.evaluate import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="A run, checkpoint, Hugging Face folder or ckpt.pt; the newest run by default.",
            show_default=False,
        ),
    ] = "",
    name: options.RunName = "",
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A prepared folder or named set; the run's own if left out.",
        ),
    ] = "",
    checkpoint: options.Checkpoint = "best",
    raw: options.Raw = False,
    split: Annotated[Literal["val", "train"], typer.Option("--split", help="Which split.")] = "val",
    batch: Annotated[
        int, typer.Option("--batch", min=0, help="Windows at once; 0: as many as fit the memory.")
    ] = 0,
    device: options.Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"],
        typer.Option("--precision", help="auto is bf16 where it is faster, else as in training."),
    ] = "fp32",
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Prove first that the tokens are the bytes of the source."),
    ] = False,
    out: options.RunsFolder = RUNS,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a model on every token of a split: loss, perplexity, bits per byte, by position.

    Bits per byte take every token to have the split's average number of bytes; with --certify they
    count the bytes of the tokens that were predicted.

    With --certify, exit code 1 means that the tokens are not the source's, and 2 that the source
    is gone, so that nothing can be proved.
    """
    from nanogpt_cli import recipe as recipes
    from nanogpt_cli.machine import device as devices
    from nanogpt_cli.training import evaluate as core

    model_name = options.either(run, name, "RUN")
    source = sources.resolve(model_name, checkpoint=checkpoint, out=out, raw=raw)
    for note in source.notes:
        console.say(note)
    words = options.sample_words(model_name, checkpoint, out, raw)
    found = _data(source, data, model_name, out, ["eval", *words[1:]])
    where = devices.choose(recipes.Train(device=device, precision=precision, compile=False))
    facts: dict[str, Any] = {
        "model": source.label,
        "data": str(found.folder),
        "split": split,
        "step": source.step,
    }
    plain = _words(model_name, checkpoint, out, raw, data=data, split=split, device=device,
                   precision=precision, batch=batch)  # fmt: skip
    proof = certificate.prove(found, split, plain) if certify else None
    if proof and not proof.passed:
        _refuse(facts, proof, as_json=as_json)
    console.say(f"{source.label} on the {split} split of {found.folder}")
    result = core.evaluate(
        source.model.to(where.device), getattr(found, split), where, batch=batch or None
    )
    bytes_per_token = getattr(found.manifest, split).bytes_per_token
    facts |= {
        "tokens": result.tokens,
        "loss": result.loss,
        "std_error": result.std_error,
        "perplexity": result.perplexity,
        "bits_per_byte": proof.bits_per_byte(result.loss, result.tokens)
        if proof
        else result.bits_per_byte(bytes_per_token),
    }
    if as_json:
        certified = {"certificate": certificate.facts(proof)} if proof else {}
        console.emit_json(facts | {"by_position": result.by_position.tolist()} | certified)
    else:
        _show(facts, result, proof)
    console.next_command(shell.command(*words))


def certified(run: Path, data: Path, device: str, proof: Certificate | None) -> dict[str, Any]:
    """The certificate of a run that has ended, shown on stderr and as JSON.

    Args:
        run: the run's folder; its best weights are evaluated on the validation split.
        data: folder of its data.
        device: where to compute, as in a recipe.
        proof: of its data, if that was proved before.
    """
    from nanogpt_cli import recipe as recipes
    from nanogpt_cli.machine import device as devices
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import evaluate as core

    found = open_data(data)
    proof = proof or certificate.demand(found, ["eval", run])
    source = sources.resolve(str(run))
    where = devices.choose(recipes.Train(device=device, precision="fp32", compile=False))
    result = core.evaluate(source.model.to(where.device), found.val, where)
    bits = proof.bits_per_byte(result.loss, result.tokens)
    console.say(f"{source.label}: {bits:.6f} bits per byte of the val split")
    for line in certificate.lines(proof):
        console.say(line)
    return {"bits_per_byte": bits, "certificate": certificate.facts(proof)}


def _words(
    source: str, checkpoint: str, out: Path, raw: bool, *, split: str, precision: str, **given: Any
) -> list[object]:
    """The words of the same evaluation without ``--certify``."""
    usual = {"split": "val", "precision": "fp32", "device": "auto", "data": "", "batch": 0}
    asked = {"split": split, "precision": precision, **given}
    options_given = [(f"--{k}", value) for k, value in asked.items() if value != usual[k]]
    model = options.sample_words(source, checkpoint, out, raw)[1:]
    return ["eval", *model, *itertools.chain.from_iterable(options_given)]


def _refuse(facts: dict[str, Any], proof: Certificate, *, as_json: bool) -> None:
    """Say why nothing is evaluated; exit code 1."""
    if as_json:
        unknown = dict.fromkeys(
            ("tokens", "loss", "std_error", "perplexity", "bits_per_byte", "by_position")
        )
        console.emit_json(facts | unknown | {"certificate": certificate.facts(proof)})
    else:
        for line in certificate.lines(proof):
            typer.echo(line)
    console.next_command(shell.command("data", "inspect", facts["data"]))
    raise typer.Exit(1)


@contextlib.contextmanager
def _prepared_first(name: str, tokenizer: str) -> Iterator[None]:
    """Where a text needs an option of ``prepare``, say so: this command has none of them."""
    try:
        yield
    except UserError as error:
        if not name or "--" not in error.hint:
            raise
        prepare = shell.command("prepare", name, "--tokenizer", tokenizer, "--out", "FOLDER")
        hint = f"prepare it first, then evaluate on FOLDER: {prepare}; {error.hint}"
        raise UserError(error.message, hint) from None


def _data(
    source: LoadedModel, name: str, model_name: str, out: Path, again: list[object]
) -> TokenData:
    """The data to evaluate on; its tokenizer must be the model's.

    Args:
        source: the model.
        name: of a data set; the run's own if empty.
        model_name: as the user gave it.
        out: the folder in which runs are looked up by name.
        again: the words of the command without ``--data``.

    Raises:
        UserError: there is no data, it was made with another tokenizer, or the run's own set is
            gone and its text has changed.
    """
    from nanogpt_cli.text import tokens
    from nanogpt_cli.training import progress, starting

    section = source.state.get("recipe", {}).get("data", {})
    # An imported run was not trained here, but its recipe names a data set.
    wanted = name or section.get("name", "")
    if not wanted:
        raise UserError(
            f"{source.label} does not record what it was trained on", "name a data set: --data DATA"
        )
    if name and tokens.is_prepared(Path(name)):
        folder = Path(name)
    else:
        kind = section.get("tokenizer") or source.require_tokenizer().kind
        asked = {**section, "name": wanted, "tokenizer": kind}
        with _prepared_first(name, kind):
            folder = progress.data_folder({} if name else source.state, asked, console.say)
    found = tokens.open_data(folder)
    if source.tokenizer:
        word = sources.tokenizer_word(model_name, out, source.tokenizer)
        starting.check_tokenizer(source.tokenizer, found, source.label, word)
    difference = "" if name else progress.other_data(source.state.get("data", {}), found)
    if difference:
        words = [*again, "--data", shell.path_word(folder)]
        raise UserError(
            f"{source.label} was trained on other data: {difference}",
            f"put the text back as it was then, or evaluate on this set: {shell.hint(*words)}",
        )
    if found.vocab_size > source.model.config.vocab_size:
        raise UserError(
            f"{folder} has {found.vocab_size} token ids, but the model has only "
            f"{source.model.config.vocab_size}",
            "prepare the text with the model's tokenizer",
        )
    return found


def _show(facts: dict[str, Any], result: Result, proof: Certificate | None) -> None:
    for name in ("tokens", "loss", "perplexity", "bits_per_byte"):
        value = facts[name]
        typer.echo(f"{name:14} {value:,}" if name == "tokens" else f"{name:14} {value:.6f}")
    for line in certificate.lines(proof) if proof else ():
        typer.echo(line)
    typer.echo("loss by position in the context:")
    curve = result.by_position
    edges = [0, *(2**i for i in range(len(curve).bit_length()) if 2**i < len(curve)), len(curve)]
    for low, high in itertools.pairwise(edges):
        span = f"{low + 1}" if high == low + 1 else f"{low + 1}-{high}"
        typer.echo(f"  {span:>11}  {curve[low:high].mean():.4f}")
