"""A loaded model with its current settings, shared by one-shot and interactive sampling."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console, sources
from nanogpt_cli.cli.unswept import unswept
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from nanogpt_cli.cli.sample.prompts import Prompt
    from nanogpt_cli.cli.sources import LoadedModel
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.sampling.continuation import TextPiece
    from nanogpt_cli.sampling.sampler import GenerationConfig
    from nanogpt_cli.sampling.weights import Weights
    from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
    from nanogpt_cli.text.tokenizers.unknown import Policy

# Sampling a text shorter than this from a prompt shorter than that takes less time than measuring
# the best number of threads (about 7 steps).
_SHORT_TEXT, _SHORT_PROMPT = 32, 256


@dataclass
class Session:
    """A model that is ready to sample from, and its settings.

    Attributes:
        source: the loaded source.
        model: the model, on its device.
        weights: the model's weights in the layout for decoding.
        tokenizer: tokenizer of the source.
        generation: settings of the next text.
        stop: strings that end a text.
        stop_at_end_of_text: whether the end-of-text token ends a text.
        on_unknown: what to do with unknown characters; see ``text.tokenizers.unknown``.
        crop: whether to keep only the end of a prompt that does not fit.
        threads_open: whether the thread count is still to be measured; one thread until then.
        tuned: whether nothing is left to be measured.
        asked: the words of the command that opens it again.
    """

    source: LoadedModel
    model: GPT
    weights: Weights
    tokenizer: Tokenizer
    generation: GenerationConfig
    stop: tuple[str, ...] = ()
    stop_at_end_of_text: bool = True
    on_unknown: Policy = "error"
    crop: bool = False
    threads_open: bool = False
    tuned: bool = False
    asked: tuple[object, ...] = ("sample",)

    def encode(self, prompts: list[Prompt] | None) -> tuple[list[str], list[list[int]]]:
        """Prompts as text and ids; ``None`` stands for the model's default prompt.

        Raises:
            UserError: a prompt has unknown characters or does not fit the context, or the cache
                for so many texts does not fit the memory.
        """
        from nanogpt_cli.sampling.decode import check_room

        texts, ids = self._default_prompt() if prompts is None else self._encoded(prompts)
        check_room(self.weights, len(ids) * self.generation.samples)
        return texts, ids

    def _encoded(self, prompts: list[Prompt]) -> tuple[list[str], list[list[int]]]:
        from nanogpt_cli.text.tokenizers import unknown

        ids = []
        for text, where in prompts:
            place = f"{where}: " if where else ""
            try:
                found, notes = unknown.encode(self.tokenizer, text, self.on_unknown)
                for remark in notes:
                    note(place + remark)
                ids.append(self._fitted(found, place))
            except UserError as error:
                raise UserError(place + error.message, error.hint) from None
        return [prompt.text for prompt in prompts], ids

    def pieces(self, prompts: list[list[int]]) -> Iterator[TextPiece]:
        """Sample texts; see ``sampling.continuation``. Threads are tuned after the first token."""
        from nanogpt_cli.sampling.continuation import continue_prompts

        if max(map(len, prompts)) > _SHORT_PROMPT:
            self.choose_threads()
        for piece in continue_prompts(
            self.model, self.tokenizer, prompts, self.generation,
            stop=self.stop, stop_at_end_of_text=self.stop_at_end_of_text,
        ):  # fmt: skip
            yield piece
            if self.generation.max_new_tokens > _SHORT_TEXT:
                self.choose_threads()

    def choose_threads(self) -> None:
        """Tune decoding once to this machine; a thread count that the user set is kept."""
        if self.tuned:
            return
        self.tuned = True
        import torch

        from nanogpt_cli.sampling.tuning import tune

        torch.set_num_threads(tune(self.weights, self.open_threads()).threads)
        self.threads_open = False

    def open_threads(self) -> list[int]:
        """The candidate thread counts: those worth trying, or only the current one."""
        import torch

        from nanogpt_cli import host
        from nanogpt_cli.sampling.tuning import thread_counts

        if not self.threads_open:
            return [torch.get_num_threads()]
        return thread_counts(host.usable_cores())

    def _default_prompt(self) -> tuple[list[str], list[list[int]]]:
        recipe = self.source.state.get("recipe")
        text = recipe.get("sample", {}).get("prompt") if isinstance(recipe, dict) else None
        if text:
            try:
                return [text], [self._fitted(self.tokenizer.encode(text))]
            except UserError:  # nobody has typed it
                note(f"the recipe's prompt {text!r} cannot be used with this model")
        if self.tokenizer.eot is not None:  # in training, it precedes every document
            return [""], [[self.tokenizer.eot]]
        from nanogpt_cli.text.tokenizers import unknown

        ids, _ = unknown.encode(self.tokenizer, "\n", "replace")
        return ["\n"], [ids or [0]]

    def _fitted(self, ids: list[int], place: str = "") -> list[int]:
        limit = self.model.config.block_size
        if not ids:
            raise UserError(
                "the prompt is empty without its unknown characters",
                "use characters of the training text",
            )
        if len(ids) <= limit:
            return ids
        if not self.crop:
            raise UserError(
                f"the prompt has {len(ids)} tokens, but the model's context is only {limit}",
                "shorten it, or use --crop to keep only its end",
            )
        note(f"{place}only the last {limit} of the prompt's {len(ids)} tokens are read")
        return ids[-limit:]


@unswept()
def open_session(
    source: str,
    checkpoint: str,
    out: Path,
    *,
    device: str,
    precision: str,
    threads: int,
    raw: bool = False,
) -> Session:
    """Load a model, move it to its device, and set the thread count if the user gave one.

    Raises:
        UserError: there is no such model or device, or int8 is asked of another than a CPU.
    """
    found = sources.resolve(source, checkpoint=checkpoint, out=out, raw=raw)
    for remark in found.notes:
        note(remark)
    tokenizer = found.require_tokenizer()
    import torch

    from nanogpt_cli.machine.formats import multiplies_bf16
    from nanogpt_cli.sampling.sampler import GenerationConfig
    from nanogpt_cli.sampling.weights import Weights

    place = _device(device)
    native = place.type == "cuda" and multiplies_bf16(place)
    bf16 = precision == "bf16" or (precision == "auto" and native)
    model = found.model.to(place)
    threads_open = place.type == "cpu" and not (threads or _threads_are_set())
    if threads or threads_open:
        torch.set_num_threads(threads or 1)
    int8 = precision == "int8"
    if int8 and place.type != "cpu":
        raise UserError(
            f"int8 weights are for CPUs, not for {place.type}",
            "use --precision bf16, or --device cpu",
        )
    weights = Weights.of(model, torch.bfloat16 if bf16 else torch.float32 if int8 else None)
    if int8:
        weights = weights.in_int8()
    # Where rounding could change a draw, the model itself is asked, if it is the one that draws.
    generation = GenerationConfig(1, weights=weights, exact=not (bf16 or int8))
    return Session(
        found, model, weights, tokenizer, generation,
        threads_open=threads_open, tuned=place.type != "cpu",
    )  # fmt: skip


def describe(session: Session) -> str:
    """One line about the model, its number format and its device."""
    import torch

    kind = "bf16" if session.weights.wte.dtype == torch.bfloat16 else "fp32"
    kind = "int8" if session.weights.int8 else kind
    device = session.model.lm_head.weight.device
    threads = torch.get_num_threads()
    known = device.type == "cpu" and not session.threads_open
    where = f"{threads} thread{'s' * (threads > 1)}" if known else str(device)
    size = console.count(session.model.n_parameters())
    return f"{session.source.label} · {size} parameters · {kind}, {where}"


def note(message: str) -> None:
    """Write a line of commentary to stderr, dim on a terminal."""
    console.write(sys.stderr, console.painted(message, "dim", sys.stderr) + "\n")


def fresh_seed() -> int:
    """A random seed that is short enough to be typed again."""
    return secrets.randbelow(1_000_000)


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device).item()  # fails on the meta device, which has no values
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"this machine has no device {wanted!r}", "try --device auto") from None
    return device


def _threads_are_set() -> bool:
    return os.environ.get("OMP_NUM_THREADS", "").isdigit()
