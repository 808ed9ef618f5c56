"""``nanogpt bench sample``: measure sampling speed, and compare it with other programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli.bench import rivals as bench_rivals
from nanogpt_cli.cli import options
from nanogpt_cli.cli.sample import sampling_session, speed
from nanogpt_cli.cli.sample.command import Precision
from nanogpt_cli.errors import UserError
from nanogpt_cli.places import RUNS

if TYPE_CHECKING:
    from nanogpt_cli.sampling.timing import Rival


def register(group: typer.Typer) -> None:
    """Add ``sample`` to the group of benchmarks."""
    group.command(name="sample")(bench_sample)


def bench_sample(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A model, as for nanogpt sample.")
    ] = "",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="best|last|STEP", help="Which one of a run.")
    ] = "best",
    out: options.RunsFolder = RUNS,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Length of the prompt.")
    ] = 1,
    new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", help="Length of a sample in tokens; 0 fills the context."
        ),
    ] = 0,
    num_samples: Annotated[
        int, typer.Option("--num-samples", help="Samples per prompt, in one batch.")
    ] = 1,
    repeats: Annotated[int, typer.Option("--repeats", help="Turns; medians are shown.")] = 3,
    nanogpt: options.NanoGPT = None,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Time transformers' cached generate as well.")
    ] = False,
    device: options.Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            help="auto is bf16 where it is faster, else fp32; int8: CPUs.",
        ),
    ] = Precision.auto,
    threads: Annotated[
        int, typer.Option("--threads", help="CPU threads; 0 measures which count is fastest.")
    ] = 0,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Measure sampling: time to first token, latency, tokens/s, compared with the naive path."""
    if min(prompt_tokens, num_samples, repeats) < 1 or new_tokens < 0:
        raise UserError("lengths, samples and repeats must be at least 1", "")
    session = sampling_session.open_session(
        source, checkpoint, out, device=device, precision=precision.value, threads=threads
    )
    session.generation = replace(
        session.generation, max_new_tokens=new_tokens or 1 << 30, samples=num_samples
    )
    rivals: dict[str, Rival] = {}
    if nanogpt is not None:
        rivals["nanoGPT"] = bench_rivals.nanogpt(
            nanogpt, session.model, session.generation.sampling
        )
    if transformers:
        rivals["transformers"] = bench_rivals.huggingface_transformers(
            session.model, session.generation.sampling
        )
    ids = [i % session.tokenizer.vocab_size for i in range(prompt_tokens)]
    speed.measure(session, ids, rivals, repeats=repeats, as_json=as_json)
