"""The sizes of a module, from its configuration, its tables, or by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.graph import stream
from nanogpt_cli.modules.graph.passes import first_run, unwrapped
from nanogpt_cli.modules.starts.build import Built

# What configurations call the number of positions, and of heads.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "block_size", "n_ctx", "max_seq_len",
    "max_sequence_length", "sequence_len", "context_length",
)  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


@dataclass(frozen=True)
class Sizes:
    """What limits of a start depend on.

    Attributes:
        n_embd: channels of the residual stream.
        n_head: heads; 1 if the module does not tell.
        vocab_size: rows of the token embedding.
        block_size: positions that the module takes; 0 if it does not tell.
    """

    n_embd: int
    n_head: int
    vocab_size: int
    block_size: int


def sizes_of(module: nn.Module, width: int = 0, rows: int = 0) -> Sizes:
    """What the configuration says.

    Args:
        module: any.
        width: channels of its stream, where they are known.
        rows: of the table in which it looks its ids up. The vocabulary is not larger, whatever the
            configuration says; if neither is known, it is the largest embedding's.
    """
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    known = [n for n in (_stated(module, ("vocab_size",)), rows) if n]
    return Sizes(
        width,
        _stated(module, _HEADS) or 1,
        min(known, default=max(tables, default=0)),
        _stated(module, _LENGTHS),
    )


def tried_sizes(built: Built, batch: int, length: int) -> Sizes:
    """Sizes of which those that no configuration states are found by running the module.

    It runs on ids that are 0. If it fails on sequences of ``length``, the longest that it takes is
    sought by halving, since a table of positions, a mask or a check in its code may be the limit.

    Args:
        built: the module; one without values states its sizes.
        batch, length: shape of the ids that it will be inspected on.

    Raises:
        UserError: it fails on sequences of any length.
    """
    sizes = sizes_of(built.module)
    if built.fill is not None:
        return sizes

    def rows(tokens: int) -> int:
        """Rows of the first table in which ids are looked up; 0 if there is none."""
        ids = torch.zeros(batch, tokens, dtype=torch.int64)
        trace, _ = first_run(unwrapped(built.module), ids, None)
        tables = [trace.values[node.inputs[0]].shape[0] for node in stream.lookups(trace)]
        return tables[0] if tables else 0

    longest = min(length, sizes.block_size or length)
    try:
        found = rows(longest)
    except UserError as failed:
        if not sizes.vocab_size:
            return sizes  # it may be no language model at all, which says more
        try:
            found = rows(2)
        except UserError:
            raise failed from None
        sizes = replace(sizes, block_size=_longest(rows, 2, longest))
    return replace(sizes_of(built.module, rows=found), block_size=sizes.block_size)


def _longest(run: Callable[[int], object], low: int, high: int) -> int:
    """The most tokens that ``run`` takes, if it takes ``low`` and refuses ``high``."""
    while high - low > 1:
        middle = (low + high) // 2
        try:
            run(middle)
        except UserError:
            high = middle
        else:
            low = middle
    return low


def _stated(module: nn.Module, names: Sequence[str]) -> int:
    config = getattr(module, "config", None)
    for owner in (config, getattr(config, "text_config", None)):
        for name in names:
            value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0
