"""Parts side by side: the slow twin is one part; the bits are a function of the number alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_run

from nanogpt_cli.machine import parts, threads
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import checkpoint, setup
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.training.trainer import Trainer

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return toy_run.data(tmp_path_factory.mktemp("data"))


def stepper(data: TokenData, **train: object) -> Stepper:
    recipe = toy_run.recipe(train={"batch_size": 5, "tokens_per_step": 0, **train})
    return setup.assemble(resolve(recipe, data))


def test_slots_are_dealt_out_in_order_and_evenly() -> None:
    assert parts.split(range(3, 10), 3) == [range(3, 5), range(5, 7), range(7, 10)]
    assert parts.split(range(2), 8) == [range(1), range(1, 2)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_agree_with_one_part(data: TokenData, accumulate: int) -> None:
    T = toy_run.recipe().model.block_size
    more = {"tokens_per_step": 5 * T * accumulate}
    one, three = stepper(data, parts=1, **more), stepper(data, parts=3, **more)
    assert (one.n_parts, three.n_parts) == (1, 3)
    a, b = one.measure(4), three.measure(4)
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    for p, q in zip(one.model.parameters(), three.model.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_the_bits_do_not_depend_on_how_many_threads_torch_has(data: TokenData) -> None:
    before = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            one = stepper(data, parts=3)
            one.measure(0)
            found.append([p.grad for p in one.model.parameters()])
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)


def test_each_part_has_one_thread_from_the_first_on_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    threads.pool.cache_clear()  # the first round is where a thread may take the common setting

    def work(_: range) -> tuple[int, int]:
        first = torch.get_num_threads()
        (torch.ones(300, 300) @ torch.ones(300, 300)).relu().sum()
        return first, torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        for _ in range(3):
            found = parts.run(work, range(4), 2)
            assert found == [(1, 1), (1, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_small_batches_bring_the_number_down(data: TokenData) -> None:
    assert stepper(data, parts=9).n_parts == 5


def test_a_loss_scaler_works_on_one_part(data: TokenData) -> None:
    one = stepper(data, parts=3, precision="fp16", device="cpu")
    assert (one.n_parts, one.scaler.is_enabled()) == (1, True)
    assert one.measure(0).finite


def test_many_cores_spread_operations_instead(
    data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    for count, expected in ((3, 3), (32, 1)):
        monkeypatch.setattr("torch.get_num_threads", lambda n=count: n)
        assert parts.side_by_side(stepper(data).device) == expected


def test_an_error_in_a_part_is_raised(data: TokenData) -> None:
    one = stepper(data, parts=2)

    def fail(mine: range) -> torch.Tensor:
        raise ValueError(f"part {mine.start}")

    with pytest.raises(ValueError, match="part 0"):
        parts.gradients(fail, range(4), 2, list(one.model.parameters()))


def test_a_run_goes_on_with_the_parts_it_began_with(data: TokenData, tmp_path: Path) -> None:
    """Also where the recipe leaves the number open and the machine has another one."""
    run = toy_run.folder(tmp_path / "a")
    begun = Trainer(toy_run.recipe(train={"parts": 3}), data, run)
    toy_run.run(begun, steps=4)
    assert Trainer(toy_run.recipe(), data).recipe.train.parts == 1  # this process has one thread
    resumed = Trainer(toy_run.recipe(), data, run, checkpoint=checkpoint.folder_of(run, 4))
    assert (resumed.recipe.train.parts, resumed.stepper.n_parts) == (3, 3)
    toy_run.run(resumed)
    whole = Trainer(toy_run.recipe(train={"parts": 3}), data)
    toy_run.run(whole)
    assert toy_run.differing(toy_run.tensors(resumed), toy_run.tensors(whole)) == []
