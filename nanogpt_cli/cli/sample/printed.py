"""Output of ``nanogpt sample``: streamed text, coloured tokens, or one line of JSON."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nanogpt_cli import shell
from nanogpt_cli.cli import console
from nanogpt_cli.cli.sample import sampling_session
from nanogpt_cli.cli.sample.sampling_session import Session
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanogpt_cli.cli.sample.prompts import Prompt
    from nanogpt_cli.sampling.continuation import Continuation, TextPiece
    from nanogpt_cli.sampling.sampler import Token

# Line between texts, as in nanoGPT's sample.py.
SEPARATOR = "---------------\n"
RUNNERS_UP = 4
# Colours of a token's probability, from certain to surprising.
_COLOURS = ((0.8, "green"), (0.4, "cyan"), (0.15, "yellow"), (0.03, "magenta"), (0.0, "red"))


def write(session: Session, given: list[Prompt] | None, *, as_json: bool, logprobs: bool) -> None:
    """Sample and write all texts; commentary goes to stderr."""
    texts, ids = session.encode(given)
    session.generation.logprobs = RUNNERS_UP if as_json or logprobs else None
    sampling_session.note(f"{sampling_session.describe(session)} · seed {session.generation.seed}")
    clock = Clock()
    try:
        _write(session, texts, ids, clock, as_json=as_json, logprobs=logprobs)
    except BrokenPipeError:  # whoever read the text has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except KeyboardInterrupt:
        sampling_session.note(f"stopped · {clock.summary()}")
        raise
    sampling_session.note(clock.summary())
    console.next_command(shell.command(*session.asked, "--interactive"))


def _write(
    session: Session,
    texts: list[str],
    ids: list[list[int]],
    clock: Clock,
    *,
    as_json: bool,
    logprobs: bool,
) -> None:
    if as_json:
        found = _collect(session, ids, clock)
        console.emit_json(_facts(session, texts, found, clock))
    elif logprobs:
        show = InOrder(
            texts, session.generation.samples,
            colour=_colour, after=lambda one: _list_tokens(session, one),
        )  # fmt: skip
        _stream(session, ids, clock, show)
        if sys.stdout.isatty():
            names = ", ".join(f"{name} ≥ {low:.0%}" for low, name in _COLOURS)
            sampling_session.note(f"colours: {names}")
    else:
        _stream(session, ids, clock, InOrder(texts, session.generation.samples))


class Clock:
    """Counts tokens and measures their speed."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.first: float | None = None
        self.tokens = 0

    def tick(self) -> None:
        """Count a token."""
        self.last = time.perf_counter()
        self.tokens += 1
        if self.first is None:
            self.first = self.last - self.start

    @property
    def tokens_per_s(self) -> float:
        """Throughput over the whole time, including the prompt."""
        return self.tokens / max(self.last - self.start, 1e-9)

    def summary(self) -> str:
        """Tokens, time and speed in one line."""
        seconds = self.last - self.start
        return (
            f"{self.tokens} tokens in {seconds:.2f} s: {self.tokens_per_s:,.0f} tokens/s, "
            f"the first after {1000 * (self.first or 0):.0f} ms"
        )


def emit(text: str, style: str = "") -> None:
    """Write text to stdout at once: escaped on a terminal, unchanged into a file or a pipe."""
    stream = sys.stdout
    console.write(stream, console.painted(text, style, stream) if stream.isatty() else text)


def _stream(session: Session, ids: list[list[int]], clock: Clock, show: InOrder) -> None:
    try:
        for piece in session.pieces(ids):
            clock.tick()
            show(piece)
    except (KeyboardInterrupt, UserError):
        show.finish()
        raise
    show.finish()


class InOrder:
    """Prints several texts one after another while all are drawn in parallel.

    The first unfinished text is streamed; later ones are buffered meanwhile. Prompts are dim on a
    terminal.

    Args:
        prompts: texts of the prompts.
        samples: number of samples per prompt.
        colour: gives the colour of a token's text on a terminal; plain by default.
        after: called with each text when it has ended and its line is closed.
    """

    def __init__(
        self,
        prompts: list[str],
        samples: int,
        *,
        colour: Callable[[Token], str] = lambda _: "",
        after: Callable[[Continuation], None] | None = None,
    ) -> None:
        self.prompts, self.colour, self.after = prompts, colour, after
        self.keys = [(p, s) for p in range(len(prompts)) for s in range(samples)]
        self.waiting: dict[tuple[int, int], list[TextPiece]] = {}
        self.ended: dict[tuple[int, int], Continuation] = {}
        self.at = 0
        self.line_open = False
        self._begin()

    def __call__(self, piece: TextPiece) -> None:
        """Take the next piece."""
        key = piece.of.prompt, piece.of.sample
        if piece.of.ending != "interrupted":
            self.ended[key] = piece.of
        self.waiting.setdefault(key, []).append(piece)
        while self.at < len(self.keys):
            key = self.keys[self.at]
            for one in self.waiting.pop(key, []):
                self._emit(one.text, self.colour(one.token))
            if key not in self.ended:
                return
            self._end(self.ended[key])

    def finish(self) -> None:
        """End the last line."""
        if self.line_open:
            self._emit("\n")

    def _end(self, one: Continuation) -> None:
        if self.after:
            self.finish()
            self.after(one)
        self.at += 1
        if self.at < len(self.keys):
            self._emit(("\n" if self.line_open else "") + SEPARATOR)
            self._begin()

    def _begin(self) -> None:
        self._emit(self.prompts[self.keys[self.at][0]], "dim")

    def _emit(self, text: str, colour: str = "") -> None:
        if text:
            emit(text, colour)
            self.line_open = not text.endswith("\n")


def _collect(session: Session, ids: list[list[int]], clock: Clock) -> list[Continuation]:
    found: dict[tuple[int, int], Continuation] = {}
    for piece in session.pieces(ids):
        clock.tick()
        found[piece.of.prompt, piece.of.sample] = piece.of
    return [found[key] for key in sorted(found)]


def _facts(
    session: Session, texts: list[str], found: list[Continuation], clock: Clock
) -> dict[str, Any]:
    return {
        "source": session.source.label,
        "step": session.source.step,
        "seed": session.generation.seed,
        "sampling": asdict(session.generation.sampling),
        "context": session.generation.context,
        "samples": [
            {
                "prompt_index": one.prompt,
                "sample": one.sample,
                "prompt": texts[one.prompt],
                "text": one.text,
                "ending": one.ending,
                "tokens": [token.id for token in one.tokens],
                "logprobs": [round(token.logprob, 5) for token in one.tokens],
                "runners_up": [
                    [[i, round(p, 5)] for i, p in token.runners_up] for token in one.tokens
                ],
            }
            for one in found
        ],
        "new_tokens": clock.tokens,
        "seconds": round(clock.last - clock.start, 4),
        "first_token_s": round(clock.first or 0.0, 4),
        "tokens_per_s": round(clock.tokens_per_s, 1),
    }


def _colour(token: Token) -> str:
    probability = math.exp(token.logprob)
    return next(name for low, name in _COLOURS if probability >= low)


def _list_tokens(session: Session, one: Continuation) -> None:
    """Print one line per token with its probability and the runners-up."""
    from rich.text import Text

    for token in one.tokens:
        line = Text(f"{token.position:5d}  ")
        line.append(_shown(session, token.id).ljust(14), style=_colour(token))
        line.append(f"{math.exp(token.logprob):7.1%}  ")
        others = [(i, p) for i, p in token.runners_up if i != token.id][: RUNNERS_UP - 1]
        line.append(
            "  ".join(f"{_shown(session, i)} {math.exp(p):.1%}" for i, p in others), style="dim"
        )
        console.stdout().print(line, soft_wrap=True)


def _shown(session: Session, id: int) -> str:
    from nanogpt_cli.text.tokenizers.tokenizer import quoted

    return quoted(session.tokenizer.token_bytes(id))
