"""``nanogpt export``: write a model in the formats of other tools and verify each by running it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.cli.sources import resolve
from nanogpt_cli.errors import UserError
from nanogpt_cli.extras import install_command
from nanogpt_cli.places import RUNS
from nanogpt_cli.run.folder import RunFolder, find_run

if TYPE_CHECKING:
    from nanogpt_cli.interop.compare import Check
    from nanogpt_cli.interop.source import Exportable
    from nanogpt_cli.interop.verify import Artefact


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="[SOURCE]",
            help="A run, or any model that nanogpt sample takes; the newest run by default.",
            show_default=False,
        ),
    ] = "",
    run: options.RunName = "",
    to: Annotated[
        str, typer.Option("--to", metavar="TARGETS", help="Some of hf,gguf,onnx,pt2,nanogpt.")
    ] = "hf",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where to write one folder per target; exports/ in the "
            "run by default.", show_default=False,
        ),
    ] = None,
    checkpoint: options.Checkpoint = "best",
    raw: options.Raw = False,
    quantize: Annotated[
        str,
        typer.Option("--quantize", metavar="TYPES", help="GGUF files to write: f32, f16, bf16, "
                     "q8_0; lossy: q5_1, q5_0, q4_1, q4_0."),
    ] = "f16",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", help="Run each artefact in its own runtime and compare; by "
            "default if that runtime is installed.", show_default=False,
        ),
    ] = None,
    verify_with: Annotated[
        str,
        typer.Option("--verify-with", metavar="PYTHON", help="A Python interpreter that has the "
                     "runtimes, e.g. of another version.", show_default=False),
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier artefacts.")
    ] = False,
    push: Annotated[
        str,
        typer.Option("--push", metavar="OWNER/NAME", help="Upload the hf folder to the hub "
                     "afterwards (if it passed).", show_default=False),
    ] = "",
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Export a model and verify each artefact in its own runtime.

    Folders are written whole or not at all, with the measurements in verify.json.
    Exit code 1 means that an artefact does not compute what the model computes, 2 that a target is
    impossible; the possible ones are written nevertheless.
    """
    from nanogpt_cli.interop import exporting, hub

    targets = exporting.parse_targets(to)
    if push:
        if "hf" not in targets:
            raise UserError("--push uploads the Hugging Face folder", "add hf to --to")
        hub.check_push(push)
    found = _source(options.either(source, run, "SOURCE"), checkpoint, raw)
    folder = out or (found.run.exports if found.run else Path("exports") / found.name)
    quantizations = [name.strip() for name in quantize.split(",") if name.strip()]
    refused = exporting.check_ready(
        found, targets, folder, overwrite=overwrite, quantizations=quantizations,
        runtimes=bool(verify) and not verify_with,
    )  # fmt: skip
    possible = [target for target in targets if target not in refused]
    again = partial(_again, context, found)
    if not possible:
        raise _refusal(refused, possible, again)
    artefacts = []
    say = _once()
    for target in possible:
        artefacts += exporting.export(
            found, target, folder, say, quantizations=quantizations, overwrite=overwrite
        )
    checks = exporting.verify_all(
        found, artefacts, console.say, python=verify_with or sys.executable, wanted=verify,
        on_check=lambda check: console.say(_line(check)),
    )  # fmt: skip
    _report(artefacts, checks, refused, as_json)
    if any(check.passed is False for check in checks):
        for target, error in refused.items():
            console.say(f"{target} is not exported: {error}")
        raise typer.Exit(1)
    _next(artefacts[0], text=found.tokenizer is not None)
    if push and "hf" in possible:
        if verify is None and any(c.target == "hf" and c.passed is None for c in checks):
            raise UserError(
                f"{folder / 'hf'} was not verified, so it is not uploaded",
                install_command("verify") + "; or upload it unverified with --no-verify",
            )
        console.say(f"uploading {folder / 'hf'} to {push}")
        console.say(f"uploaded: {hub.push(folder / 'hf', push)}")
    if refused:
        raise _refusal(refused, possible, again)


def _source(source: str, checkpoint: str, raw: bool) -> Exportable:
    """The model to export: a run's checkpoint is read tensor by tensor, other models are loaded."""
    from nanogpt_cli.interop import importing
    from nanogpt_cli.interop import source as sources

    if not source or RunFolder(Path(source)).is_run() or RunFolder(RUNS / source).is_run():
        run = find_run(source or None)
        console.say(f"exporting run {run.name}")
        return sources.from_run(run, checkpoint, raw=raw)
    found = resolve(source, checkpoint=checkpoint, raw=raw)
    for note in found.notes:
        console.say(note)
    state = {**found.state, "step": found.step}
    return sources.from_model(found.model, found.tokenizer, importing.run_name(source), **state)


def _once() -> Callable[[str], None]:
    """``console.say`` for lines that were not said before: several targets may say the same."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            console.say(line)

    return say


def _again(context: typer.Context, found: Exportable, targets: list[str]) -> str:
    """The command that was typed, for some targets, as a hint."""
    instead: dict[str, str | None] = {"to": ",".join(targets)}
    if found.run and not context.params["source"] and not context.params["run"]:
        instead["source"] = shell.path_word(found.run.path)  # by then another may be the newest
    if "hf" not in targets:
        instead["push"] = None
    return options.given(context, **instead)


def _refusal(
    refused: dict[str, UserError], made: list[str], again: Callable[[list[str]], str]
) -> UserError:
    """What could not be exported and why, and what can be done about each."""
    from nanogpt_cli.interop import exporting

    lacking = [t for t, error in refused.items() if isinstance(error, exporting.Lacking)]
    if len(refused) == 1:
        [(target, error)] = refused.items()
        message = f"{target} is not exported: {error.message}" if made else error.message
        hints = [error.hint]
    else:
        reasons = "; ".join(f"{target}: {error.message}" for target, error in refused.items())
        message = f"not exported: {reasons}"
        hints = [f"{target}: {error.hint}" for target, error in refused.items()]
    if lacking and (made or len(refused) > 1):
        hints.append(f"then {again(lacking)}")
    return UserError(message, "; ".join(dict.fromkeys(hint for hint in hints if hint)))


def _report(
    artefacts: list[Artefact],
    checks: list[Check],
    refused: dict[str, UserError],
    as_json: bool,
) -> None:
    """Print the artefacts on stdout, and on stderr what was not verified."""
    if as_json:
        from nanogpt_cli.interop import verify

        value: dict[str, Any] = {"artefacts": [str(a.path) for a in artefacts]}
        value["not_exported"] = {target: str(error) for target, error in refused.items()}
        console.emit_json({**value, **verify.to_json(checks)})
    else:
        for artefact in artefacts:
            typer.echo(artefact.path)
    unknown = [check for check in checks if check.passed is None]
    if unknown:
        names = ", ".join(check.artefact for check in unknown)
        runtimes = ", ".join(dict.fromkeys(check.runtime for check in unknown))
        warning = f"NOT VERIFIED: {names}: never run in {runtimes}, so nobody knows if it is right"
        console.write(sys.stderr, console.painted(warning, "yellow", sys.stderr) + "\n")


def _line(check: Check) -> str:
    name = check.variant or check.target
    if check.passed is None:
        needs = check.problems[0].endswith("not installed")
        return f"{name}: {check.problems[0]}" + f" ({install_command('verify')})" * needs
    facts = check.facts
    if "max_abs_diff" not in facts:
        measured = "every tensor bit for bit" if check.passed else ""
    else:
        measured = (
            f"largest difference {facts['max_abs_diff']:.2g}, same likeliest token at "
            f"{facts['argmax_agreement']:.2%} of {facts['positions']:,} positions, "
            f"{facts['greedy_equal']} of {facts['greedy_texts']} greedy texts equal"
        )
        measured += _text_line(facts)
    outcome = "passed" if check.passed else f"FAILED ({'; '.join(check.problems)})"
    return f"{name}: {outcome} in {check.runtime}" + (f": {measured}" if measured else "")


def _text_line(facts: dict[str, Any]) -> str:
    """What is known of the tokenizer's text, after a comma."""
    if not facts.get("tokenizer_same_ids"):
        return ""
    characters = f", {facts['tokenizer_characters']:,} characters"
    if facts["tokenizer_round_trip"]:
        return f"{characters} round-trip"
    if facts["tokenizer_text_equal"]:
        return f"{characters} decoded as the model's tokenizer does"
    if only := facts.get("tokenizer_text_differs_only_in"):
        tokens = "1 added token" if len(only) == 1 else f"{len(only)} added tokens"
        return f"{characters} with equal ids, decoded alike but for {tokens}"
    return ""


def _next(artefact: Artefact, *, text: bool) -> None:
    path = shell.quoted(str(artefact.path))
    loading = f"import torch; torch.export.load({str(artefact.path)!r})"
    commands = {
        "hf": shell.command(*(["sample"] if text else ["init-inspect", "--from"]), artefact.path),
        "gguf": f"llama-completion -m {path} -p 'text'",
        "onnx": shell.command("sample", artefact.path.parent),
        "nanogpt": f"python sample.py --out_dir={path}   (in nanoGPT's folder)",
        "pt2": f"python -c {shell.quoted(loading)}",
    }
    if artefact.target != "onnx":
        console.next_command(commands[artefact.target])
