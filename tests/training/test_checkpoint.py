from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import LIMIT

from nanogpt_cli import files, schemes
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints import checkpoint, retention
from nanogpt_cli.training.checkpoints.checkpoint import CheckpointError

CONFIG = GPTConfig(
    n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=5, dropout=0.0, bias=False,
    activation="gelu",
)  # fmt: skip


@pytest.fixture
def gpt() -> GPT:
    return drawing.build(CONFIG, schemes.get("gpt2"), 0)


def write(run: RunFolder, gpt: GPT, step: int) -> Path:
    moments = {"transformer.wte.weight.exp_avg": torch.full((5, 8), float(step))}
    return checkpoint.save(run, gpt, {"step": step}, tokenizer={}, optimizer=moments)


@pytest.fixture
def run(tmp_path: Path, gpt: GPT) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    for step in (10, 20, 30):
        write(made, gpt, step)
    return made


def test_round_trip(run: RunFolder, gpt: GPT) -> None:
    loaded = checkpoint.load(retention.find(run, "20"))
    assert loaded.step == 20
    assert loaded.model.config == gpt.config
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_others_may_read_it_as_the_umask_says(run: RunFolder) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in retention.find(run, "20").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def break_disk(path: Path) -> None:
    memory = Path("/proc/self/mem")  # reading its first byte fails as on a broken disk
    if not memory.exists():
        pytest.skip("needs /proc")
    path.unlink()
    path.symlink_to(memory)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, break_disk])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json"])
def test_damage_is_refused_by_name_and_the_previous_one_offered(
    run: RunFolder, damage: Any, name: str
) -> None:
    folder = retention.find(run, "last")
    damage(folder / name)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(folder)
    newest, problems = retention.newest_intact(run)
    assert newest == checkpoint.folder_of(run, 20)
    assert [path for path, _ in problems] == [folder]
    assert name in problems[0][1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_broken_state_file_is_refused(run: RunFolder, content: str) -> None:
    folder = retention.find(run, "last")
    (folder / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.verify(folder)


def test_wrong_tensors_are_named(run: RunFolder, gpt: GPT) -> None:
    tensors = checkpoint.model_tensors(gpt)
    tensors["extra"] = torch.zeros(1)
    tensors["transformer.wpe.weight"] = torch.zeros(3, 8)
    del tensors["transformer.ln_f.weight"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_fit(gpt, tensors, source="file")
    for part in ("ln_f.weight is missing", "extra is unknown", "wpe.weight is (3, 8) instead"):
        assert part in str(caught.value)


def test_set_aside_keeps_the_bytes_out_of_the_way(run: RunFolder) -> None:
    aside = retention.set_aside(retention.find(run, "last"))
    assert aside.name == "damaged-step-000030"
    assert retention.list_steps(run) == [10, 20]


def test_prune_keeps_the_newest_the_best_and_the_multiples(run: RunFolder, gpt: GPT) -> None:
    for step in (40, 50, 60):
        write(run, gpt, step)
    retention.mark_best(run, 20, 1.5)
    assert retention.prune(run, keep=2, keep_every=40) == [10, 30]
    assert retention.list_steps(run) == [20, 40, 50, 60]
    assert retention.find(run, "best").name == "step-000020"
    assert [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".tmp")] == []


def test_find_names_what_there_is(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        retention.find(run, "15")
    assert caught.value.hint == "there are: best, last, 10, 20, 30"
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        retention.find(RunFolder(tmp_path))


@pytest.mark.parametrize("moment", ["write_json", "_fsync_tree", "_move_into_place"])
def test_a_save_that_fails_leaves_the_old_state(
    run: RunFolder, gpt: GPT, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(run.path.rglob("*"))
    monkeypatch.setattr(files, moment, fail)
    with pytest.raises(UserError, match="the disk is full"):
        write(run, gpt, 40)
    assert sorted(run.path.rglob("*")) == before


def test_too_little_space_is_seen_before_writing(
    run: RunFolder, gpt: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run.path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 17 MB, 0 MB are free"):
        write(run, gpt, 40)
    assert retention.list_steps(run) == [10, 20, 30]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    target = tmp_path / "disk"
    target.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(target)]
    if subprocess.run(command, capture_output=True, check=False, timeout=LIMIT).returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    yield target
    subprocess.run(["umount", str(target)], check=True, timeout=LIMIT)


def test_a_real_full_disk(small_disk: Path, gpt: GPT) -> None:
    run = RunFolder(small_disk / "run")
    run.path.mkdir()
    write(run, gpt, 10)
    (small_disk / "filler").write_bytes(bytes(18 << 20))
    with pytest.raises(UserError, match="MB are free"):
        write(run, gpt, 20)
    checkpoint.verify(retention.find(run, "last"))
    assert retention.list_steps(run) == [10]


def test_a_read_only_folder(run: RunFolder, gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal of the system is imitated."""

    def refuse(*arguments: object, **keys: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match="the disk is read-only") as caught:
        write(run, gpt, 40)
    assert "--out" in caught.value.hint


def test_leftovers_of_a_killed_save_are_recognised(run: RunFolder) -> None:
    (run.checkpoints / ".tmp-step-000040-abc").mkdir()
    (run.checkpoints / ".tmp-step-000040-abc" / "model.safetensors").write_bytes(b"half")
    assert retention.list_steps(run) == [10, 20, 30]
    assert [p.name for p in files.remove_leftovers(run.checkpoints)] == [".tmp-step-000040-abc"]


def test_state_is_strict_json_with_every_hash(run: RunFolder) -> None:
    state = json.loads((retention.find(run) / "state.json").read_text())
    assert state["sha256"].keys() == {
        "model.safetensors", "optimizer.safetensors", "tokenizer.json",
    }  # fmt: skip
