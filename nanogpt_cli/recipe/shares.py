"""How the sequences of a step fall to several processes, and what of it wastes time."""

from __future__ import annotations

from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe.sections import Recipe

# cuBLAS has its fastest kernels for rows of 128 bytes, in bf16 64 values.
_TILE = 64
# With a smaller vocabulary the head is a small part of the work.
_LARGE_VOCABULARY = 4096


def check(recipe: Recipe, processes: int) -> None:
    """Refuse a step whose sequences cannot be divided evenly.

    Raises:
        UserError: with the nearest ``tokens_per_step`` that can.
    """
    sequences = _sequences(recipe, processes)
    if sequences % processes:
        whole = recipe.train.batch_size * processes
        fitting = max(1, round(sequences / whole)) * whole * recipe.model.block_size
        raise UserError(
            f"{sequences} sequences per step cannot be divided evenly among {processes} processes",
            f"set train.tokens_per_step = {fitting}",
        )


def notes(recipe: Recipe, processes: int, *, vocab_size: int, cuda: bool) -> list[str]:
    """What of a recipe wastes time, as sentences with the value to set.

    Args:
        recipe: to be carried out.
        processes: that share each step, evenly.
        vocab_size: of the model; 0 if it is not known.
        cuda: it will be trained on NVIDIA GPUs.
    """
    found = []
    each, size = _sequences(recipe, processes) // processes, recipe.train.batch_size
    missing = -each % min(each, size)
    if missing:
        found.append(
            f"train.batch_size = {size} does not divide the {each} sequences of each of "
            f"{processes} processes: a compiled run fills the last micro-batch up with "
            f"{missing} that count for nothing; set {_fitting(recipe, each, processes)}"
        )
    if cuda and vocab_size % _TILE and vocab_size >= _LARGE_VOCABULARY:
        found.append(
            f"a vocabulary of {vocab_size} is not a multiple of {_TILE}, in which GPUs multiply "
            f"faster; for a new model set model.vocab_size = {-(-vocab_size // _TILE) * _TILE}"
        )
    return found


def _fitting(recipe: Recipe, each: int, processes: int) -> str:
    """The next smaller micro-batch that divides ``each``, or a step if that is less than half."""
    size, T = recipe.train.batch_size, recipe.model.block_size
    smaller = next(n for n in range(size, 0, -1) if each % n == 0)
    if 2 * smaller >= size:
        return f"train.batch_size = {smaller}"
    return f"train.tokens_per_step = {-(-each // size) * size * processes * T}"


def _sequences(recipe: Recipe, processes: int) -> int:
    return recipe.for_processes(processes).tokens_per_step // recipe.model.block_size
