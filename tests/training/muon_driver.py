"""One of several ranks that train by Muon, in a job of ``forked_ranks.py``; writes what it did.

Arguments: a folder for the data, and one for ``PARALLEL-RANK.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist
import toy_run
from torch import Tensor

from nanogpt_cli.machine import distributed, exchange, joining
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.optimizers import muon
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve

STEPS, LAYERS, CHANNELS = 3, 3, 12
seen: Counter[str] = Counter()


def recipe(parallel: str) -> Recipe:
    """Of 36 rows of query, key and value, two ranks hold 18 each: one and a half matrices."""
    return toy_run.recipe(
        model={"n_layer": LAYERS, "n_embd": CHANNELS},
        train={"parallel": parallel, "tokens_per_step": 192},
        optim={"name": "muon"},
    )


def main(data: Path, out: Path) -> None:
    """Take a few steps in both ways to share the work."""
    count()
    with joining.joined() as group:
        for parallel in ("ddp", "fsdp"):
            seen.clear()
            found = trained(recipe(parallel), toy_run.data(data), group) | seen
            (out / f"{parallel}-{group.rank}.json").write_text(json.dumps(found))


def trained(recipe: Recipe, data: TokenData, group: Group) -> dict[str, Any]:
    """The losses of a few steps, and a hash of all weights after them."""
    stepper = assemble(resolve(recipe, data, group=group))
    losses = []
    for index in range(STEPS):
        measured = stepper.measure(index)
        losses.append(measured.loss)
        seen["updating"] = 1
        stepper.apply(measured)
        seen["updating"] = 0
    digest = hashlib.sha256()
    for _, parameter in stepper.model.named_parameters():
        whole = parameter.full_tensor() if distributed.is_split(parameter) else parameter
        digest.update(whole.detach().numpy().tobytes())
    return {"losses": losses, "weights": digest.hexdigest()}


def count() -> None:
    """Count the work of Newton-Schulz, and the messages of updates."""
    plain = muon.orthogonalize

    def orthogonalize(x: Tensor, *arguments: Any) -> Tensor:
        n, rows, columns = x.shape
        seen["work"] += n * rows * rows * (2 * columns + rows)
        return plain(x, *arguments)

    muon.orthogonalize = orthogonalize
    for place, name in (
        (exchange, "_all_gather"),
        (dist, "all_to_all_single"),
        (dist, "all_reduce"),
        (dist, "broadcast"),
    ):
        setattr(place, name, _counted(getattr(place, name)))


def _counted(call: Any) -> Any:
    def counted(*arguments: Any, **options: Any) -> Any:
        seen["messages"] += seen["updating"]
        return call(*arguments, **options)

    return counted


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
