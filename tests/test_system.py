"""What is sampled of the machine, against what the system says; GPUs from a replayed session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from nvml_replay import Replay
from programs import finish, start

from nanogpt_cli import host
from nanogpt_cli.nvml import REASONS, Nvml
from nanogpt_cli.system import Sampler

FIRST = "5f1c2d3e-0000-1111-2222-333344445555"
OLD = "00000000-aaaa-bbbb-cccc-dddddddddddd"


def test_a_sample_is_what_the_system_says(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, gpus=None)
    sum(i * i for i in range(1_000_000))  # something to be counted
    child = start([sys.executable, "-c", "input()"], stdin=-1)
    sampler._search_at = 0.0
    found = sampler.sample()
    assert found["rss"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert found["memory_total"] == psutil.virtual_memory().total
    assert found["disk_total"] == psutil.disk_usage(str(tmp_path)).total
    assert found["cores"] == host.usable_cores()
    assert 0 <= found["cpu"] <= 1
    assert 0 < found["process_cpu"] <= (os.cpu_count() or 1) + 1
    assert found["children"] >= 1
    assert found["children_rss"] > 0
    assert found["gpus"] == {}
    child.kill()
    finish(child)
    sampler._search_at = 0.0
    assert sampler.sample()["children"] == found["children"] - 1


def test_what_the_system_refuses_is_absent_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(tmp_path / "gone", gpus=None)

    def refuse(*_: object, **__: object) -> None:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil.Process, "children", refuse)
    sampler._search_at = 0.0
    found = sampler.sample()
    for name in ("memory_used", "memory_total", "disk_free", "children", "children_rss"):
        assert found[name] is None, name
    assert found["rss"] > 0


def test_a_replayed_session_of_nvml_is_read() -> None:
    gpus = Nvml(library=Replay())
    first, held, idle = gpus.read(), gpus.read(), gpus.read()
    assert first[FIRST] == {
        "name": "NVIDIA Synthetic 80GB", "utilization": 0.97, "memory_used": 64424509440,
        "memory_total": 85899345920, "power_w": 612.0, "power_limit_w": 700.0,
        "temperature_c": 61, "sm_mhz": 1980, "sm_max_mhz": 1980, "memory_mhz": 2619,
        "throttled": [],
    }  # fmt: skip
    # What a device does not support is absent, not zero.
    assert first[OLD] == {
        "name": "Old Synthetic", "memory_used": 1073741824, "memory_total": 8589934592,
        "temperature_c": 40,
    }  # fmt: skip
    assert held[FIRST]["throttled"] == ["power cap", "software thermal"]
    assert idle[FIRST]["throttled"] == []  # an idle GPU is not held back


def test_gpus_are_chosen_by_uuid() -> None:
    assert [uuid for uuid, _ in Nvml([f"GPU-{OLD.upper()}"], Replay()).gpus] == [OLD]
    assert not Nvml(["none of them"], Replay()).gpus


def test_a_machine_without_nvml_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed: pip install" in Nvml().why_not
    found = Nvml(library=Replay(nvmlInit={"error": "Driver Not Loaded"}))
    assert found.why_not == "NVML: Driver Not Loaded"
    assert found.read() == {}


def test_the_replay_and_the_reasons_are_those_of_the_library() -> None:
    library = pytest.importorskip("pynvml")
    for name in Replay().calls:
        assert callable(getattr(library, name)), name
    bits = [getattr(library, name) for name in dir(library) if "ClocksThrottleReason" in name]
    known = {bit for bit in bits if isinstance(bit, int) and bit and bit & (bit - 1) == 0}
    assert known - REASONS.keys() == {library.nvmlClocksThrottleReasonGpuIdle}


def group(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in values.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n", encoding="utf-8")


def test_the_control_group_with_the_least_room_counts(tmp_path: Path) -> None:
    """Version 2: a job below a slice whose limit is nearer; cached files can be given back."""
    root, member = tmp_path / "cgroup", tmp_path / "member"
    member.write_text("0::/slice/job\n", encoding="utf-8")
    cached = "anon 5\nactive_file 300\ninactive_file 200\n"
    group(root / "slice" / "job", memory__max="max", memory__current=900)
    group(root / "slice", memory__max=2000, memory__current=1500, memory__stat=cached)
    group(root, memory__max=9000, memory__current=1600)
    assert host.control_group(root, member) == host.ControlGroup(2000, 1000)
    group(root / "slice" / "job", memory__max=1200)
    assert host.control_group(root, member) == host.ControlGroup(1200, 900)


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    root, member = tmp_path / "cgroup", tmp_path / "member"
    member.write_text("5:cpu:/\n4:memory:/job\n0::/\n", encoding="utf-8")
    stat = "total_active_file 10\ntotal_inactive_file 20\n"
    names = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 400, "memory__stat": stat}
    group(root / "memory" / "job", **names)
    group(root / "memory", memory__limit_in_bytes=9223372036854771712)
    assert host.control_group(root, member) == host.ControlGroup(1000, 370)
    group(root / "memory" / "job", memory__limit_in_bytes=9223372036854771712)
    assert host.control_group(root, member) is None


@pytest.mark.parametrize("text", ["", "nonsense", "0::/../../../etc\n", "::::\n"])
def test_a_strange_list_of_control_groups_is_no_limit(tmp_path: Path, text: str) -> None:
    (tmp_path / "member").write_text(text, encoding="utf-8")
    assert host.control_group(tmp_path / "none", tmp_path / "member") is None
