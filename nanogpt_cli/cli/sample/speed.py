"""Speed of sampling, for ``nanogpt sample --bench`` and ``nanogpt bench sample``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from nanogpt_cli import host
from nanogpt_cli.cli import console
from nanogpt_cli.cli.sample import sampling_session
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.cli.sample.prompts import Prompt
    from nanogpt_cli.cli.sample.sampling_session import Session
    from nanogpt_cli.sampling.timing import Rival, Timing


def report(session: Session, given: list[Prompt] | None, *, as_json: bool) -> None:
    """Measure a session with the settings it has."""
    _, ids = session.encode(given)
    measure(session, ids[0], {}, repeats=3, as_json=as_json)


def measure(
    session: Session, ids: list[int], rivals: dict[str, Rival], *, repeats: int, as_json: bool
) -> None:
    """Time the continuation of a prompt, with the given rivals in turn, and print the result.

    Args:
        session: the session to measure.
        ids: tokens of the prompt.
        rivals: other programs to time, by name.
        repeats: number of turns; medians are printed.
        as_json: whether to print one line of JSON instead of a table.

    Raises:
        UserError: the prompt fills the context.
    """

    from nanogpt_cli.sampling import timing

    room = session.model.config.block_size - len(ids)
    if room < 1:
        raise UserError(
            f"the prompt has {len(ids)} tokens, which leaves no room in the model's context",
            f"use at most {session.model.config.block_size - 1} tokens",
        )
    new = min(session.generation.max_new_tokens, room)
    if new < session.generation.max_new_tokens < 1 << 30:
        sampling_session.note(f"measuring only {new} new tokens, because the context holds no more")
    generation = replace(
        session.generation, max_new_tokens=new, vocab_size=session.tokenizer.vocab_size
    )
    counts = session.open_threads()
    session.choose_threads()
    sampling_session.note(sampling_session.describe(session))
    found = timing.time_sampling(
        session.model, ids, generation, repeats=repeats, rivals=rivals, rival_threads=counts,
        report=sampling_session.note,
    )  # fmt: skip
    if as_json:
        console.emit_json(_facts(session, len(ids), generation.samples, new, found))
    else:
        _show(len(ids), generation.samples, new, found)
    console.next_command("nanogpt bench inspect")


def _show(prompt: int, samples: int, new: int, found: Timing) -> None:
    from rich import box
    from rich.table import Table

    title = f"{prompt} + {new} tokens" + (f", {samples} samples" if samples > 1 else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for column in ("", "first token", "per token", "95th percentile", "tokens/s", "speed-up"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in (("cached", found.cached), ("naive", found.naive)):
        table.add_row(
            name, _ms(rate.first_s), _ms(rate.token_s), _ms(rate.slow_s),
            f"{rate.tokens_per_s:,.1f}", _times(found.cached.tokens_per_s, rate.tokens_per_s),
        )  # fmt: skip
    for name, speed in found.rivals.items():
        table.add_row(
            name, "", "", "", f"{speed:,.1f}", _times(found.cached.tokens_per_s, speed)
        )  # fmt: skip
    console.stdout().print(table)
    if found.rivals:
        counts = (f"{name} {_threads(n)}" for name, n in found.rival_threads.items())
        console.stdout().print(f"fastest thread counts: {', '.join(counts)}")
    lengths = f"{len(found.naive_lengths)} context lengths"
    console.stdout().print(
        f"naive: one sample, timed at {lengths}; weights {found.weight_bytes / 1e6:,.1f} MB, "
        f"packed {found.packed_bytes / 1e6:,.1f} MB, "
        f"cache {found.cache_bytes / 1e6:,.1f} MB, peak memory {host.peak_bytes() / 1e6:,.0f} MB"
    )


def _facts(session: Session, prompt: int, samples: int, new: int, found: Timing) -> dict[str, Any]:
    import torch

    return {
        "source": session.source.label,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "samples": samples,
        "device": str(session.model.lm_head.weight.device),
        "threads": torch.get_num_threads(),
        **asdict(found),
        "speedup": found.cached.tokens_per_s / found.naive.tokens_per_s,
        "speedup_over": {
            name: found.cached.tokens_per_s / speed for name, speed in found.rivals.items()
        },
        "peak_bytes": host.peak_bytes(),
    }


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"


def _times(ours: float, other: float) -> str:
    return f"{ours / other:.1f}×"
