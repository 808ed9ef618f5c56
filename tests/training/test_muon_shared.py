"""Muon's matrices shared out among processes: evenly, in few messages, to the same weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import muon_driver
import pytest
import toy_run
from programs import LIMIT, as_ranks

from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.machine.exchange import deal

WORLD = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each rank found, by the way to share."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        as_ranks(WORLD, muon_driver.__file__, folder, folder),
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        parallel: [
            json.loads((folder / f"{parallel}-{rank}.json").read_text()) for rank in range(WORLD)
        ]
        for parallel in ("ddp", "fsdp")
    }


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_hold_the_same_weights_and_follow_one_process(
    ranks: dict[str, list[dict[str, Any]]], parallel: str, tmp_path: Path
) -> None:
    first, second = ranks[parallel]
    assert first["weights"] == second["weights"]
    alone = muon_driver.trained(muon_driver.recipe(parallel), toy_run.data(tmp_path), Group())
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)


@pytest.mark.parametrize(("parallel", "messages"), [("ddp", 1), ("fsdp", 2)])
def test_each_rank_makes_its_share_of_the_products_in_few_messages(
    ranks: dict[str, list[dict[str, Any]]], parallel: str, messages: int
) -> None:
    C, layers, steps = muon_driver.CHANNELS, muon_driver.LAYERS, muon_driver.STEPS
    # A block: four square matrices, and two of 4 columns a row.
    whole = steps * layers * (4 * 3 + 2 * 9) * C**3
    work = [rank["work"] for rank in ranks[parallel]]
    assert sum(work) == whole
    assert max(work) - min(work) <= steps * 9 * C**3  # a matrix
    assert [rank["messages"] for rank in ranks[parallel]] == [messages * steps] * WORLD


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("costs", [[3] * 48 + [9] * 24, [1, 1, 100, 1], [5.0], []])
def test_work_is_dealt_evenly(costs: list[float], world: int) -> None:
    owners = deal(costs, world)
    loads = [
        sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank)
        for rank in range(world)
    ]
    assert sum(loads) == sum(costs)
    assert max(loads) <= sum(costs) / world + max(costs, default=0)
    assert owners == deal(list(costs), world)
