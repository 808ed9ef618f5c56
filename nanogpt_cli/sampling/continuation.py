"""Continue prompts as text: turn drawn tokens into text, end at stop strings or end-of-text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.sampling.sampler import GenerationConfig, Token, generate
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.text.tokenizers.stream import TextStream
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer

Ending = Literal["length", "end_of_text", "stop_string", "interrupted"]


@dataclass
class Continuation:
    """One sample of one prompt.

    Attributes:
        prompt: index of the prompt.
        sample: index of the sample.
        tokens: the tokens drawn, including the one that ended the text.
        text: the new text, without a stop string or the end-of-text token.
        ending: why the text ended; "interrupted" while it has not.
    """

    prompt: int
    sample: int
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    ending: Ending = "interrupted"


class TextPiece(NamedTuple):
    """A token and the text that is final now: often the token's own, sometimes none or more."""

    of: Continuation
    token: Token
    text: str


class _Writer:
    """Takes tokens as they are drawn, builds the texts, and decides when a sequence ends."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        generation: GenerationConfig,
        stop: Sequence[str],
    ) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts
        self.generation, self.stop = generation, stop
        self.streams: dict[tuple[int, int], TextStream] = {}
        self.found: dict[tuple[int, int], Continuation] = {}
        self.piece = ""

    def take(self, token: Token) -> bool:
        key = token.prompt, token.sample
        if (stream := self.streams.get(key)) is None:
            stream = TextStream(self.tokenizer, self.stop, context=self.prompts[token.prompt])
            self.streams[key] = stream
        one = self.found.setdefault(key, Continuation(*key))
        one.tokens.append(token)
        if token.id in self.generation.stop_ids:
            one.ending, self.piece = "end_of_text", stream.finish()
        else:
            self.piece = stream.push(token.id)
            if stream.stopped:
                one.ending = "stop_string"
            elif token.position + 1 >= self.generation.max_new_tokens:
                self.piece += stream.finish()
                one.ending = "stop_string" if stream.stopped else "length"
        one.text += self.piece
        return stream.stopped


def continue_prompts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    *,
    stop: Sequence[str] = (),
    stop_at_end_of_text: bool = True,
) -> Iterator[TextPiece]:
    """Yield each token with its text, position by position over all sequences.

    Args:
        model: in evaluation mode.
        tokenizer: only ids of its vocabulary are drawn.
        prompts: token ids, at least one each.
        generation: how to generate; ``vocab_size`` and ``stop_ids`` are taken from the tokenizer.
        stop: strings that end a sequence; they are left out of the text.
        stop_at_end_of_text: whether the tokenizer's end-of-text token ends a sequence; otherwise
            it appears in the text like any other token.
    """
    eot = tokenizer.eot if stop_at_end_of_text else None
    ends = frozenset() if eot is None else frozenset({eot})
    generation = replace(generation, vocab_size=tokenizer.vocab_size, stop_ids=ends)
    writer = _Writer(tokenizer, prompts, generation, stop)
    for token in generate(model, prompts, generation, done=writer.take):
        yield TextPiece(writer.found[token.prompt, token.sample], token, writer.piece)


def generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    seed: int = 0,
) -> str:
    """The prompt and its continuation as text, which ends early at end-of-text.

    An empty prompt stands for the beginning of a text: the end-of-text token, or where there is
    none, the first id. The model's training mode is restored afterwards.
    """
    generation = GenerationConfig(
        max_new_tokens, sampling=Sampling(temperature=temperature, top_k=top_k), seed=seed
    )
    training = model.training
    model.eval()
    try:
        ids = tokenizer.encode(prompt) or [tokenizer.eot or 0]
        return prompt + "".join(
            piece.text for piece in continue_prompts(model, tokenizer, [ids], generation)
        )
    finally:
        model.train(training)
