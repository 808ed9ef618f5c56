"""The machine is sampled beside a run: what is merged into its events, and what is left alone."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_run
from nvml_replay import Replay
from programs import LIMIT
from toy_run import of_type, recipe

from nanogpt_cli import host
from nanogpt_cli.machine import memory
from nanogpt_cli.run import events, sinks
from nanogpt_cli.run.commands import send_command
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.system import Sampler
from nanogpt_cli.training import batches, hooks, monitor, step_times
from nanogpt_cli.training.drive import drive
from nanogpt_cli.training.step_times import StepTimes
from nanogpt_cli.training.trainer import Trainer

FIRST = "5f1c2d3e-0000-1111-2222-333344445555"


class Samples:
    """Counts the samples that are taken, so that a test can wait for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken, self.allowed = threading.Semaphore(0), threading.Semaphore(10**9)
        take = Sampler.sample

        def counted(sampler: Sampler) -> dict[str, Any]:
            assert self.allowed.acquire(timeout=LIMIT)
            found = take(sampler)
            self.taken.release()
            return found

        monkeypatch.setattr(Sampler, "sample", counted)
        monkeypatch.setattr(monitor, "SHARE", 1e9)  # as often as asked for, at any cost

    def await_next(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.taken.acquire(timeout=LIMIT)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    return Samples(monkeypatch)


def often(**log: object) -> dict[str, Any]:
    return {"system_every": 1e-3, **log}


def driven(
    folder: Path,
    between: Callable[[events.Event], None] = lambda _: None,
    *,
    prepare: Callable[[Trainer], None] = lambda _: None,
    resume: bool = False,
    **sections: Any,
) -> tuple[list[events.Event], Trainer]:
    data, run, made = toy_run.data(folder.parent), toy_run.folder(folder), recipe(**sections)
    trainers: list[Trainer] = []

    def begin() -> Trainer:
        newest = sorted(run.checkpoints.glob("step-*"))[-1] if resume else None
        trainers.append(Trainer(made, data, run, checkpoint=newest))
        prepare(trainers[0])
        return trainers[0]

    told = []
    for event in drive(run, made, begin, resume=resume):
        told.append(event)
        between(event)
    return told, trainers[0]


def at_steps(samples: Samples, count: int = 1) -> Callable[[events.Event], None]:
    """After each step, wait until so many samples more have been taken."""

    def between(event: events.Event) -> None:
        if isinstance(event, events.Step):
            samples.await_next(count)

    return between


def test_samples_leave_every_bit_of_a_run_alone(tmp_path: Path, samples: Samples) -> None:
    off, without = driven(tmp_path / "off", log={"system_every": 0})
    on, with_samples = driven(tmp_path / "on", at_steps(samples), log=often())
    assert not of_type(off, events.System)
    assert len(of_type(on, events.System)) >= 11
    assert toy_run.losses(on) == toy_run.losses(off)
    assert [e.val_loss for e in of_type(on, events.Eval)] == [
        e.val_loss for e in of_type(off, events.Eval)
    ]
    assert toy_run.differing(toy_run.tensors(without), toy_run.tensors(with_samples)) == []
    assert isinstance(on[-1], events.RunEnded)
    assert not [t for t in threading.enumerate() if t.name == "system"]


def test_samples_tell_of_the_run_and_its_log_keeps_them(tmp_path: Path, samples: Samples) -> None:
    told, _ = driven(tmp_path / "run", at_steps(samples), log=often())
    found = of_type(told, events.System)
    assert EventReader(tmp_path / "run" / "events.jsonl").read_all() == told
    assert sum(event.steps for event in found) <= 12
    spent = {part: sum(e.times.get(part, 0.0) for e in found) for part in step_times.PARTS}
    for part in ("data", "compute", "optimizer", "evaluation", "checkpoint"):
        assert spent[part] > 0, part
    assert spent["paused"] == 0
    # The parts share the time out among them, but for rounding.
    assert sum(spent.values()) == pytest.approx(
        sum(e.seconds for e in found), abs=1e-3 * len(found)
    )
    assert all(event.step <= 12 and event.rss and event.disk_free for event in found)


def test_a_long_evaluation_is_sampled_at_its_signs_of_life(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_HEARTBEAT_S", -1.0)
    monkeypatch.setattr("nanogpt_cli.training.evaluate._VALUES", 1)

    def between(event: events.Event) -> None:
        if isinstance(event, events.Heartbeat):
            samples.await_next()

    told, _ = driven(
        tmp_path / "run", between, log=often(), train={"max_steps": 4, "eval_every": 4}
    )
    kinds = [type(event) for event in told]
    first = kinds.index(events.Heartbeat)
    assert events.System in kinds[first : kinds.index(events.Eval)]


@pytest.mark.parametrize("place", ["__init__", "sample"])
def test_a_sampler_that_fails_is_noted_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    tried = threading.Event()

    def broken(*_: object, **__: object) -> None:
        tried.set()
        raise ZeroDivisionError("a counter\nran backwards")

    monkeypatch.setattr(Sampler, place, broken)

    def between(event: events.Event) -> None:
        if isinstance(event, events.Step):
            assert tried.wait(LIMIT)

    told, _ = driven(tmp_path / "run", between, log=often())
    (note,) = (e for e in of_type(told, events.Note) if "system metrics" in e.message)
    assert note.message == "no more system metrics: ZeroDivisionError: a counter ran backwards"
    assert of_type(told, events.RunEnded)[0].reason == "finished"


def raised(told: list[events.Event], kind: str) -> list[bool]:
    return [e.active for e in of_type(told, events.Alarm) if e.kind == kind]


def test_a_disk_that_fills_raises_an_alarm_that_a_resumed_run_clears(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = [17 << 20]
    monkeypatch.setattr(
        Sampler, "_disk", lambda _: usage._replace(free=free[0])
    )  # not the disk's own numbers, which saves look at
    told, _ = driven(tmp_path / "run", at_steps(samples, 4), log=often())
    assert raised(told, "disk_low") == []  # there is room for two checkpoints of some kilobytes
    free[0] = (16 << 20) + 100
    told, _ = driven(
        tmp_path / "run", at_steps(samples, 4), log=often(), resume=True, train={"max_steps": 14}
    )
    assert raised(told, "disk_low") == [True]
    (alarm,) = (e for e in of_type(told, events.Alarm) if e.kind == "disk_low")
    assert alarm.severity == "error"
    assert "16.0 MiB are free where checkpoints go" in alarm.message
    assert alarm.message.endswith("so it will fail")
    free[0] = 1 << 30
    told, _ = driven(
        tmp_path / "run", at_steps(samples, 4), log=often(), resume=True, train={"max_steps": 18}
    )
    assert raised(told, "disk_low") == [False]


def test_the_limit_of_a_control_group_raises_an_alarm(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "memory.max").write_text(f"{1 << 30}\n", encoding="utf-8")
    (root / "memory.current").write_text(f"{1023 << 20}\n", encoding="utf-8")
    (root / "memory.stat").write_text(f"active_file {200 << 20}\n", encoding="utf-8")
    planted = functools.partial(host.control_group, root, tmp_path / "none")
    monkeypatch.setattr(host, "control_group", planted)

    def between(event: events.Event) -> None:
        if isinstance(event, events.Step):
            if event.step == 5:  # the cached files turn into memory that is held
                (root / "memory.stat").write_text("active_file 0\n", encoding="utf-8")
            samples.await_next(4)

    told, _ = driven(tmp_path / "run", between, log=often())
    found = [e for e in of_type(told, events.Alarm) if e.kind == "memory_near_limit"]
    assert [e.active for e in found] == [True]
    assert found[0].step >= 5
    assert found[0].message.startswith("1023.0 MiB of the control group's limit, 1.0 GiB, are in")


@pytest.fixture
def planted_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run computes on a CPU, and the samples are of a replayed GPU that it is said to use."""

    class Planted(memory.Gpu):
        def allocator(self) -> dict[str, int]:
            return {"torch_allocated": 5, "torch_reserved": 7, "torch_peak": 6}

    monkeypatch.setattr(memory, "gpu", lambda *_, **__: Planted(FIRST, (FIRST,), 0))
    idle = {"0": {"gpu": 12, "memory": 1}}
    replay = Replay(nvmlDeviceGetUtilizationRates=idle)
    monkeypatch.setitem(sys.modules, "pynvml", replay)


@pytest.mark.usefixtures("planted_gpu")
def test_a_gpu_that_waits_for_data_raises_an_alarm(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [0.0]
    fetch = batches.fetch

    def slow(*arguments: Any) -> Any:
        late[0] += 10.0  # seconds, on the run's stopwatch
        return fetch(*arguments)

    monkeypatch.setattr(batches, "fetch", slow)

    def stopwatch(trainer: Trainer) -> None:
        trainer.stepper.times = StepTimes(lambda: time.perf_counter() + late[0])

    samples.allowed = threading.Semaphore(0)

    def one_a_step(event: events.Event) -> None:
        if isinstance(event, events.Step):
            samples.allowed.release()
            samples.await_next()
            if event.step == 12:
                samples.allowed.release(10**6)

    told, _ = driven(
        tmp_path / "run", one_a_step, prepare=stopwatch, log=often(), train={"parts": 1}
    )
    assert raised(told, "gpu_starved")[:1] == [True]  # and not what later samples make of it
    gpu = of_type(told, events.System)[-1].gpus[FIRST]
    assert gpu["utilization"] == 0.12
    assert gpu["torch_peak"] == 6
    assert "memory_used" in gpu
    assert list(of_type(told, events.System)[-1].gpus) == [FIRST]  # not the other one


def test_a_gpu_run_without_the_library_says_what_to_install(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "gpu", lambda *_, **__: memory.Gpu(FIRST, (FIRST,), 0))
    monkeypatch.setattr(memory.Gpu, "allocator", lambda _: {"torch_allocated": 5})
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told, _ = driven(tmp_path / "run", at_steps(samples), log=often())
    (note,) = (e for e in of_type(told, events.Note) if "GPU" in e.message)
    assert 'pip install "nanogpt-cli[gpu]"' in note.message
    assert of_type(told, events.System)[0].gpus == {FIRST: {"torch_allocated": 5}}


def test_the_parts_of_the_time_add_up_and_inner_ones_are_taken_out() -> None:
    now = iter(range(100))
    times = StepTimes(lambda: float(next(now)))
    with times.spending("evaluation"), times.spending("checkpoint"):  # at 1 and 2
        pass  # 3 and 4
    assert times.totals() == {"other": 2.0, "evaluation": 2.0, "checkpoint": 1.0}  # 5
    with contextlib.suppress(KeyError), times.spending("compute"):  # 6
        times.move(0.25, "data")
        raise KeyError  # 7
    assert times.totals() == {
        "other": 4.0, "evaluation": 2.0, "checkpoint": 1.0, "compute": 0.75, "data": 0.25,
    }  # fmt: skip


def test_data_fetched_by_threads_is_told_from_computing(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    trainer = Trainer(recipe(train={"parts": 2, "max_steps": 4}), data)
    assert trainer.spec.n_parts == 2
    for _ in trainer.run():
        pass
    found = trainer.stepper.times.totals()
    assert 0 < found["data"] < found["compute"]


def test_asking_pytorch_about_a_cpu_is_no_gpu(tmp_path: Path) -> None:
    trainer = Trainer(recipe(), toy_run.data(tmp_path))
    assert memory.gpu(trainer.spec.device, all_visible=True) is None
    assert not torch.cuda.is_initialized()


def test_leaving_a_run_early_ends_the_thread(tmp_path: Path, samples: Samples) -> None:
    data, run, made = toy_run.data(tmp_path), toy_run.folder(tmp_path / "run"), recipe(log=often())
    told = drive(run, made, lambda: Trainer(made, data, run), resume=False)
    while not isinstance(next(told), events.Step):
        pass
    samples.await_next()
    told.close()
    assert not [t for t in threading.enumerate() if t.name == "system"]


def test_a_pause_is_told_from_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt_cli.training.trainer._PAUSE_S", 1e-3)
    monkeypatch.setattr("nanogpt_cli.training.trainer._HEARTBEAT_S", -1.0)
    monkeypatch.setattr("nanogpt_cli.training.commands._POLL_S", 0.0)
    run = RunFolder(tmp_path / "run")

    def between(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 2:
            send_command(run, "pause")
        elif isinstance(event, events.Heartbeat) and event.doing == "paused":
            send_command(run, "resume")

    told, trainer = driven(run.path, between)
    assert next(e.name for e in of_type(told, events.Command)) == "pause"
    assert trainer.stepper.times.totals()["paused"] >= 1e-3


def test_sinks_get_what_is_known_by_name() -> None:
    found = sinks.scalars(
        events.System(step=3, cpu=0.5, times={"data": 0.25}, children=2,
                      gpus={"uuid": {"power_w": 300.0, "throttled": ["x"], "name": "y"}})
    )  # fmt: skip
    assert found == {
        "system/seconds": 0.0, "system/steps": 0.0, "system/cpu": 0.5, "system/children": 2.0,
        "time/data": 0.25, "gpu/0/power_w": 300.0,
    }  # fmt: skip
