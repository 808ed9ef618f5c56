"""Continuing prompts as text: tokens become pieces of text, stop strings and end-of-text end it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.sampling.sampler import Plan, Token, generate
from nanogpt_cli.text.stream import TextStream
from nanogpt_cli.text.tokenizer import Tokenizer

Ending = Literal["length", "end_of_text", "stop_string", "interrupted"]


@dataclass
class Continuation:
    """One sample of one prompt.

    Attributes:
        prompt: index of the prompt.
        sample: index of the sample.
        tokens: what was drawn, the token that ended it included.
        text: the new text, without a stop string or the end-of-text token.
        ending: why it ended; "interrupted" until it has.
    """

    prompt: int
    sample: int
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    ending: Ending = "interrupted"


class Piece(NamedTuple):
    """A token and the text that became certain with it (often its own, maybe none)."""

    of: Continuation
    token: Token
    text: str


class _Writer:
    """Takes tokens as they are drawn and says when a sequence is over."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan, stop: Sequence[str]) -> None:
        self.tokenizer, self.plan, self.stop = tokenizer, plan, stop
        self.streams: dict[tuple[int, int], TextStream] = {}
        self.found: dict[tuple[int, int], Continuation] = {}
        self.piece = ""

    def take(self, token: Token) -> bool:
        key = token.prompt, token.sample
        stream = self.streams.setdefault(key, TextStream(self.tokenizer, self.stop))
        one = self.found.setdefault(key, Continuation(*key))
        one.tokens.append(token)
        if token.id in self.plan.stop_ids:
            one.ending, self.piece = "end_of_text", stream.finish()
        else:
            self.piece = stream.push(token.id)
            if stream.stopped:
                one.ending = "stop_string"
            elif token.position + 1 >= self.plan.max_new_tokens:
                self.piece += stream.finish()
                one.ending = "stop_string" if stream.stopped else "length"
        one.text += self.piece
        return stream.stopped


def continue_prompts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    plan: Plan,
    *,
    stop: Sequence[str] = (),
    stop_at_end_of_text: bool = True,
) -> Iterator[Piece]:
    """Yield each token with its text, position by position over all sequences.

    Args:
        model: in evaluation mode.
        tokenizer: bounds the ids that can be drawn.
        prompts: ids, at least one each.
        plan: ``vocab_size`` and ``stop_ids`` are taken from the tokenizer.
        stop: strings that end a sequence; they are left out of the text.
        stop_at_end_of_text: end at the tokenizer's end-of-text token; else it is never drawn to
            end anything and appears in the text.
    """
    eot = tokenizer.eot if stop_at_end_of_text else None
    ends = frozenset() if eot is None else frozenset({eot})
    plan = replace(plan, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    writer = _Writer(tokenizer, plan, stop)
    for token in generate(model, prompts, plan, done=writer.take):
        yield Piece(writer.found[token.prompt, token.sample], token, writer.piece)
