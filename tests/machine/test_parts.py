"""Parts side by side: the slow twin is one part; the bits are a function of the number alone."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import torch
import toy_run

from nanogpt_cli.machine import parts, threads
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import setup
from nanogpt_cli.training.checkpoints import checkpoint
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


def test_slots_are_dealt_out_in_order_and_evenly_the_larger_first() -> None:
    assert parts.split(range(3, 10), 3) == [range(3, 6), range(6, 8), range(8, 10)]
    assert [len(one) for one in parts.split(range(12), 8)] == [2, 2, 2, 2, 1, 1, 1, 1]
    assert parts.split(range(0), 2) == []
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


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_sum_has_the_same_bits_whoever_came_first(count: int) -> None:
    """The slow twin adds neighbours, round by round."""
    random = torch.Generator().manual_seed(count)

    def lists() -> list[list[torch.Tensor]]:
        random.manual_seed(count)
        drawn = [torch.randn(2, 3, 4, generator=random) for _ in range(count)]
        return [[one[0].clone(), one[1].t().contiguous().t(), one[0, 0]] for one in drawn]

    expected = lists()
    while len(expected) > 1:
        pairs = itertools.zip_longest(expected[::2], expected[1::2])
        expected = [
            [x + y for x, y in zip(a, b, strict=True)] if b is not None else a for a, b in pairs
        ]
    for shuffle in range(20):
        total, given = parts.Sum(count), lists()
        for number in torch.randperm(count, generator=random.manual_seed(shuffle)).tolist():
            assert not total.result
            total.add(number, given[number])
        for one, other in zip(total.result, expected[0], strict=True):
            assert torch.equal(one, other)


def test_gradients_that_share_memory_are_summed() -> None:
    total = parts.Sum(2)
    for number in range(2):
        total.add(number, [torch.ones(1).expand(3), torch.ones(2, 4)[:, ::2]])
    assert [one.tolist() for one in total.result] == [[2.0] * 3, [[2.0] * 2] * 2]


@pytest.mark.parametrize("n_threads", [2, 3])
def test_pieces_have_the_same_bits_whichever_thread_takes_them(
    data: TokenData, n_threads: int
) -> None:
    """The slow twin is one thread; of several, the first is held until all else is computed."""
    one = stepper(data, parts=2)
    parameters = list(one.model.parameters())
    done, others = itertools.count(1), threading.Event()

    def loss(mine: range) -> torch.Tensor:
        x, y = one.batch(0, mine)
        with one.device.autocast():
            return one.model.loss(x, y) * (len(mine) / 5)

    def held(mine: range) -> torch.Tensor:
        if mine.start == 0:
            assert others.wait(60)
        elif next(done) == 3:
            others.set()
        return loss(mine)

    slow = parts.gradients(loss, range(5), 1, parameters, 4)
    fast = parts.gradients(held, range(5), n_threads, parameters, 4)
    assert torch.equal(slow[0], fast[0])
    for p, q in zip(slow[1], fast[1], strict=True):
        assert torch.equal(p, q)
        assert p.is_contiguous()


def test_large_micro_batches_are_divided_further() -> None:
    small, large = 6 * 0.8e6 * 64, 6 * 10.7e6 * 256
    assert parts.pieces(2, 12, small) == 2  # a piece would be too little work
    assert parts.pieces(2, 12, large) == 6
    assert parts.pieces(2, 3, large) == 3
    assert parts.pieces(1, 12, large) == 3


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
