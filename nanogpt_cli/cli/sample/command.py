"""``nanogpt sample``: stream text from a trained model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nanogpt_cli.cli import options
from nanogpt_cli.cli.sample import interactive as sample_interactive
from nanogpt_cli.cli.sample import printed, sampling_session, speed
from nanogpt_cli.cli.sample import prompts as sample_prompts
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS
from nanogpt_cli.printable import checked
from nanogpt_cli.sampling.settings import Sampling


class Context(StrEnum):
    """What to read once a text is longer than the context."""

    slide = "slide"
    roll = "roll"


class OnUnknown(StrEnum):
    """What to do with characters that the vocabulary lacks."""

    error = "error"
    skip = "skip"
    nearest = "replace"


class Precision(StrEnum):
    """Number format of weights and cache."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


_PROMPT, _DRAW, _OUTPUT, _MACHINE = "Prompt", "Drawing", "Output", "Machine"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sample)


def sample(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run, checkpoint, Hugging Face folder or hub id (gpt2), or ckpt.pt; else the "
            "newest run.",
            show_default=False,
        ),
    ] = "",
    run: options.RunName = "",
    checkpoint: options.Checkpoint = "best",
    raw: options.Raw = False,
    out: options.RunsFolder = RUNS,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="Text to continue; - reads stdin. Default: the recipe's.",
            rich_help_panel=_PROMPT, show_default=False,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", help="A file with one prompt.", rich_help_panel=_PROMPT),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="A file with one prompt per line (.jsonl: a JSON string).",
            rich_help_panel=_PROMPT,
        ),
    ] = None,
    crop: Annotated[
        bool,
        typer.Option(
            "--crop", help="Keep only the end of a prompt longer than the context.",
            rich_help_panel=_PROMPT,
        ),
    ] = False,
    on_unknown: Annotated[
        OnUnknown,
        typer.Option(
            "--on-unknown", help="What to do with characters the vocabulary lacks.",
            rich_help_panel=_PROMPT,
        ),
    ] = OnUnknown.error,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Length of a sample in tokens.")
    ] = 500,
    num_samples: Annotated[
        int, typer.Option("--num-samples", help="Samples per prompt, in one batch.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End before this text. Repeatable."),
    ] = None,
    ignore_eot: Annotated[
        bool, typer.Option("--ignore-eot", help="Continue after the end-of-text token.")
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 is greedy.", rich_help_panel=_DRAW)
    ] = Sampling.temperature,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Most probable tokens to keep; 0 is off.",
                          rich_help_panel=_DRAW)
    ] = Sampling.top_k,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Probability mass to keep; 1 is off.",
                            rich_help_panel=_DRAW)
    ] = Sampling.top_p,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Drop tokens below this share of the best one; 0 is "
                            "off.", rich_help_panel=_DRAW)
    ] = Sampling.min_p,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1 discourages repeated tokens.",
                            rich_help_panel=_DRAW)
    ] = Sampling.repetition_penalty,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the text; a new one each time by default.",
                                 rich_help_panel=_DRAW, show_default=False)
    ] = None,
    context: Annotated[
        Context,
        typer.Option(
            "--context", help="Beyond the context: slide is exact, roll keeps half and is fast.",
            rich_help_panel=_DRAW,
        ),
    ] = Context.slide,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="A prompt loop with live settings.",
                           rich_help_panel=_OUTPUT)
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Colours by probability; runners-up.",
                           rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON.", rich_help_panel=_OUTPUT)
    ] = False,
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure latency, speed, memory.",
                           rich_help_panel=_OUTPUT)
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, mps.", rich_help_panel=_MACHINE)
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option("--precision", rich_help_panel=_MACHINE,
                                help="auto is bf16 where it is faster, else fp32; int8: CPUs.")
    ] = Precision.auto,
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=options.MOST_THREADS,
                          help="CPU threads; 0 measures which count is fastest.",
                          rich_help_panel=_MACHINE)
    ] = 0,
) -> None:  # fmt: skip
    """Continue a prompt and print the text as it is drawn.

    Only the text goes to stdout. A seed repeats it, and sample 3 of 8 equals sample 3 of 4.
    """
    sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p)
    _check(max_new_tokens, num_samples, threads, [prompt, prompt_file, prompts])
    _check_modes(interactive=interactive, logprobs=logprobs, json=as_json, bench=bench)
    model = options.either(source, run, "SOURCE")
    given = sample_prompts.gather(prompt, prompt_file, prompts, ask_stdin=not interactive)
    session = sampling_session.open_session(
        model, checkpoint, out, raw=raw, device=device, precision=precision.value,
        threads=threads,
    )  # fmt: skip
    session.asked = tuple(options.sample_words(model, checkpoint, out, raw))
    session.on_unknown, session.crop = on_unknown.value, crop
    session.stop = tuple(checked(text, "--stop") for text in stop or ())
    session.stop_at_end_of_text = not ignore_eot
    from nanogpt_cli.sampling.sampler import (
        GenerationConfig,
    )  # after the model was found: it imports torch

    session.generation = GenerationConfig(
        max_new_tokens, samples=num_samples, sampling=sampling, context=context.value,
        seed=sampling_session.fresh_seed() if seed is None else seed,
        weights=session.weights, exact=session.generation.exact,
    )  # fmt: skip
    if bench:
        speed.report(session, given, as_json=as_json)
    elif interactive:
        sample_interactive.loop(session, given)
    else:
        printed.write(session, given, as_json=as_json, logprobs=logprobs)


def _check_modes(**modes: bool) -> None:
    given = [f"--{name}" for name, on in modes.items() if on]
    if len(given) > 1 and given != ["--json", "--bench"]:
        raise UserError(f"{' and '.join(given)} exclude each other", "give one of them")


def _check(max_new_tokens: int, num_samples: int, threads: int, prompts: list[object]) -> None:
    for name, value, least in (
        ("--max-new-tokens", max_new_tokens, 1),
        ("--num-samples", num_samples, 1),
        ("--threads", threads, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}", f"it must be at least {least}")
    if sum(value is not None for value in prompts) > 1:
        raise UserError(
            "--prompt, --prompt-file and --prompts exclude each other", "give one of them"
        )
