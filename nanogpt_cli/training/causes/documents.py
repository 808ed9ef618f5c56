"""The sequences of one step: their losses, their shares of the gradient, their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.proof.source_text import SourceText
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.stepper import Stepper

# Batches of other steps that a step's batch is compared with.
_OTHERS = 6
# Sequences whose own gradient is computed: those with the largest losses.
_MOST_GRADIENTS = 32
# Tokens of a sequence's text that are shown.
_SHOWN = 96
# Sources of more bytes are not read again to find a place in them.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Sequence:
    """One sequence of a step.

    Attributes:
        offset: of its first token in the training split.
        loss: its own mean loss in nats, with the weights before the step.
        share: of the step's gradient, by projection; the shares of all add up to 1. ``None`` where
            it was not computed.
        text: its beginning, as it is; whoever prints it makes it printable.
        file, place: where the text lies, if the set's manifest tells; ``place`` is a byte or, in
            files of records, a line.
        record: whether ``place`` is a line.
    """

    offset: int
    loss: float
    share: float | None
    text: str
    file: str = ""
    place: int = -1
    record: bool = False


@dataclass(frozen=True)
class Batch:
    """A step's sequences, the worst one first.

    Attributes:
        step: from 1.
        sequences: all of them.
        loss: their mean.
        others: mean loss of batches of later steps with the same weights.
        excess: (loss - others) in standard deviations of the others; 0 where it is not known.
    """

    step: int
    sequences: tuple[Sequence, ...]
    loss: float
    others: float
    excess: float


def look(
    stepper: Stepper, step: int, data: TokenData, *, worst: int = 3,
    report: Callable[[str], None] = lambda _: None,
) -> Batch:  # fmt: skip
    """Look at the sequences of a step with the weights that it began with.

    Args:
        stepper: as after the step before; it is left as it was.
        step: from 1.
        data: the tokens.
        worst: sequences whose place in the sources is looked for.
        report: receives a short line if something has to be fetched.
    """
    slots = range(stepper.windows.batch)
    own = _losses(stepper, step - 1)
    others = [fmean(_losses(stepper, step + ahead)) for ahead in range(_OTHERS)]
    mean = fmean(own) if all(map(math.isfinite, own)) else math.nan
    excess = 0.0
    if math.isfinite(mean) and all(map(math.isfinite, others)):
        excess = (mean - fmean(others)) / max(stdev(others), 0.02)
    order = sorted(slots, key=lambda slot: -_sortable(own[slot]))
    shares = _shares(stepper, step - 1, order[:_MOST_GRADIENTS])
    offsets = stepper.windows.offsets(step - 1, slots).tolist()
    T = stepper.windows.block_size
    places = _places(data, [offsets[slot] for slot in order[:worst]], report)
    found = []
    for rank, slot in enumerate(order):
        ids = data.train[offsets[slot] : offsets[slot] + min(T + 1, _SHOWN)]
        text = data.tokenizer.decode([int(i) for i in ids]) if rank < worst else ""
        file, place, record = places.get(offsets[slot], ("", -1, False))
        found.append(
            Sequence(offsets[slot], own[slot], shares.get(slot), text, file, place, record)
        )
    return Batch(step, tuple(found), mean, fmean(others), excess)


def _sortable(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


@torch.no_grad()
def _losses(stepper: Stepper, index: int) -> list[float]:
    """The mean loss of every sequence of a step, without dropout."""
    found: list[float] = []
    model = stepper.model.eval()
    try:
        for start in range(0, stepper.windows.batch, stepper.micro_batch):
            slots = range(start, min(start + stepper.micro_batch, stepper.windows.batch))
            x, y = stepper.batch(index, slots)
            with stepper.device.autocast():
                found += model.token_losses(x, y).float().mean(-1).tolist()
    finally:
        model.train()
    return found


def _shares(stepper: Stepper, index: int, slots: list[int]) -> dict[int, float]:
    """The share of the step's gradient that comes from each of some sequences, by projection."""
    batch, parameters = stepper.windows.batch, list(stepper.model.parameters())

    def gradient(mine: range) -> tuple[Tensor, ...]:
        x, y = stepper.batch(index, mine)
        with stepper.device.autocast():
            loss = stepper.model.loss(x, y)
        return torch.autograd.grad(loss * (len(mine) / batch), parameters)

    stepper.model.eval()
    try:
        whole = [torch.zeros_like(p) for p in parameters]
        for start in range(0, batch, stepper.micro_batch):
            mine = range(start, min(start + stepper.micro_batch, batch))
            torch._foreach_add_(whole, list(gradient(mine)))
        square = _dot(whole, whole)
        if not math.isfinite(square) or not square:
            return {}
        return {slot: _dot(gradient(range(slot, slot + 1)), whole) / square for slot in slots}
    finally:
        stepper.model.train()


def _dot(one: Iterable[Tensor], two: Iterable[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, two, strict=True)))


def _places(
    data: TokenData, offsets: list[int], report: Callable[[str], None]
) -> dict[int, tuple[str, int, bool]]:
    """Offset -> (file, byte or line, whether it is a line), as far as the sources still tell."""
    sources = data.manifest.raw["sources"]
    if not sources["files"] or sources["bytes"] > _MOST_BYTES:
        return {}
    wanted = dict(sorted((_byte_of(data, offset), offset) for offset in offsets))
    found: dict[int, tuple[str, int, bool]] = {}
    try:
        text = SourceText(data, "train", cuts.cutter(data.tokenizer), report)
        end = 0
        for piece in text.pieces():
            start, end = end, end + len(piece.text)
            for byte in [b for b in wanted if start <= b < end]:
                inside = 0 if piece.record else byte - start
                found[wanted.pop(byte)] = piece.name, piece.place + inside, piece.record
    except UserError:
        return {}  # the text is gone or has changed, so nothing in it can be named
    return found


def _byte_of(data: TokenData, offset: int) -> int:
    """UTF-8 bytes of text before a token of the training split; end-of-text tokens have none."""
    kind = data.tokenizer
    lengths = np.array(
        [0 if i == kind.eot else len(kind.token_bytes(i)) for i in range(data.vocab_size)]
    )
    return int(lengths[data.train[:offset]].sum())
