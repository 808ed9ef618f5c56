"""A loaded model with the settings of the moment: what one-shot and interactive sampling share."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from nanogpt_cli.cli.sources import LoadedModel
    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.sampling.continuation import Piece
    from nanogpt_cli.sampling.sampler import Plan
    from nanogpt_cli.sampling.weights import Weights
    from nanogpt_cli.text.tokenizer import Tokenizer
    from nanogpt_cli.text.unknown import Policy

# Texts shorter than this, from prompts shorter than that, take less time than finding out how
# many threads would write them fastest (some 7 steps).
_SHORT_TEXT, _SHORT_PROMPT = 32, 256


@dataclass
class Session:
    """A model ready to sample from, and how.

    Attributes:
        source: what was loaded.
        model: on its device.
        weights: the model's, as decoding reads them.
        tokenizer: the source's.
        plan: the settings of the next text.
        stop: strings that end a text.
        stop_at_end_of_text: whether the end-of-text token does.
        on_unknown: see ``text.unknown``.
        crop: take the end of a prompt that does not fit.
        threads_open: the thread count is yet to be measured; one until then.
        tuned: nothing is left to be measured.
        asked: the source as it was asked for; empty for the newest run.
    """

    source: LoadedModel
    model: GPT
    weights: Weights
    tokenizer: Tokenizer
    plan: Plan
    stop: tuple[str, ...] = ()
    stop_at_end_of_text: bool = True
    on_unknown: Policy = "error"
    crop: bool = False
    threads_open: bool = False
    tuned: bool = False
    asked: str = ""

    def encode(self, prompts: list[str] | None) -> tuple[list[str], list[list[int]]]:
        """Prompts as text and ids; without any, the one the model was trained to begin with.

        Raises:
            UserError: a prompt has unknown characters or does not fit the context, or there is
                not the memory for so many texts.
        """
        from nanogpt_cli.sampling.decode import check_room

        texts, ids = self._own_prompt() if prompts is None else self._encoded(prompts)
        check_room(self.weights, len(ids) * self.plan.samples)
        return texts, ids

    def _encoded(self, prompts: list[str]) -> tuple[list[str], list[list[int]]]:
        from nanogpt_cli.text import unknown

        ids = []
        for text in prompts:
            found, notes = unknown.encode(self.tokenizer, text, self.on_unknown)
            for remark in notes:
                note(remark)
            ids.append(self._fitted(found))
        return prompts, ids

    def pieces(self, prompts: list[list[int]]) -> Iterator[Piece]:
        """Draw; see ``sampling.continuation``. The first token comes before the thread probe."""
        from nanogpt_cli.sampling.continuation import continue_prompts

        if max(map(len, prompts)) > _SHORT_PROMPT:
            self.choose_threads()
        for piece in continue_prompts(
            self.model, self.tokenizer, prompts, self.plan,
            stop=self.stop, stop_at_end_of_text=self.stop_at_end_of_text,
        ):  # fmt: skip
            yield piece
            if self.plan.max_new_tokens > _SHORT_TEXT:
                self.choose_threads()

    def choose_threads(self) -> None:
        """Measure once how this machine decodes fastest; a thread count the user set is kept."""
        if self.tuned:
            return
        self.tuned = True
        import torch

        from nanogpt_cli.sampling.decode import tune

        torch.set_num_threads(tune(self.weights, self.open_threads()).threads)
        self.threads_open = False

    def open_threads(self) -> list[int]:
        """The thread counts there are to choose from: those worth trying, or the one in use."""
        import torch

        from nanogpt_cli.sampling.decode import thread_counts

        return thread_counts(_cores()) if self.threads_open else [torch.get_num_threads()]

    def _own_prompt(self) -> tuple[list[str], list[list[int]]]:
        recipe = self.source.state.get("recipe")
        text = recipe.get("sample", {}).get("prompt") if isinstance(recipe, dict) else None
        if text:
            return [text], [self._fitted(self.tokenizer.encode(text))]
        if self.tokenizer.eot is not None:  # a document begins where another has ended
            return [""], [[self.tokenizer.eot]]
        from nanogpt_cli.text import unknown

        ids, _ = unknown.encode(self.tokenizer, "\n", "replace")
        return ["\n"], [ids or [0]]

    def _fitted(self, ids: list[int]) -> list[int]:
        limit = self.model.config.block_size
        if not ids:
            raise UserError(
                "nothing of the prompt is left after leaving out unknown characters",
                "use characters of the training text",
            )
        if len(ids) <= limit:
            return ids
        if not self.crop:
            raise UserError(
                f"the prompt has {len(ids)} tokens, the model's context {limit}",
                "shorten it, or --crop takes its end",
            )
        note(f"the prompt's last {limit} of {len(ids)} tokens are read")
        return ids[-limit:]


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
    """Load a model, place it and set the thread count if the user has.

    Raises:
        UserError: there is no such model or device.
    """
    from nanogpt_cli.cli import sources

    found = sources.resolve(source, checkpoint=checkpoint, out=out, raw=raw)
    for remark in found.notes:
        note(remark)
    tokenizer = found.need_tokenizer()
    import torch

    from nanogpt_cli.sampling.sampler import Plan
    from nanogpt_cli.sampling.weights import Weights

    place = _device(device)
    bf16 = precision == "bf16" or (precision == "auto" and place.type == "cuda")
    model = found.model.to(place)
    threads_open = place.type == "cpu" and not (threads or _threads_are_set())
    if threads or threads_open:
        torch.set_num_threads(threads or 1)
    weights = Weights.of(model, torch.bfloat16 if bf16 else None)
    plan = Plan(1, weights=weights, exact=not bf16)
    return Session(
        found, model, weights, tokenizer, plan,
        threads_open=threads_open, tuned=place.type != "cpu",
    )  # fmt: skip


def describe(session: Session) -> str:
    """What is sampled from, and how, in one line."""
    import torch

    kind = "bf16" if session.weights.wte.dtype == torch.bfloat16 else "fp32"
    device = session.model.lm_head.weight.device
    threads = torch.get_num_threads()
    known = device.type == "cpu" and not session.threads_open
    where = f"{threads} thread{'s' * (threads > 1)}" if known else str(device)
    size = console.count(session.model.n_parameters())
    return f"{session.source.label} · {size} parameters · {kind}, {where}"


def note(message: str) -> None:
    """A line of commentary on stderr, dim in a terminal."""
    console.write(sys.stderr, console.painted(message, "dim", sys.stderr) + "\n")


def fresh_seed() -> int:
    """A seed nobody has chosen, short enough to type again."""
    return secrets.randbelow(1_000_000)


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device).item()  # which a device without values cannot
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"this machine has no device {wanted!r}", "try --device auto") from None
    return device


def _threads_are_set() -> bool:
    return os.environ.get("OMP_NUM_THREADS", "").isdigit()


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1
