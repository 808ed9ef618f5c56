"""Whatever happens while a set is being written: the old one, the new one, or none; never half."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import filelock
import pytest
from programs import LIMIT

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import look, prepare, splits, tokens
from nanogpt_cli.text.prepare import Request

OLD, NEW = "the old text, many times. " * 40, "a new text, written over it. " * 50

# Runs `prepare` in child after child; the k-th dies by SIGKILL just before the k-th operation that
# changes the disk. Prints how many operations a whole run has.
KILLED_AT_EVERY_STEP = """
    import builtins, io, os, pathlib, shutil, signal, sys
    from pathlib import Path
    from nanogpt_cli.text import prepare, tokens
    from nanogpt_cli.text.tokenizers import cuts
    from nanogpt_cli.text.prepare import Request

    source, out = sys.argv[1:]
    left = 0

    def deadly(owner, name):
        whole = getattr(owner, name)
        def step(*args, **options):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args, **options)
        setattr(owner, name, step)

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink"),
                        (Path, "open"), (shutil, "rmtree"), (Path, "chmod"), (Path, "mkdir")):
        deadly(owner, name)

    def check(step):
        if not tokens.is_prepared(Path(out)):
            return "none"
        data = tokens.open_data(Path(out), verify=True)
        text = data.tokenizer.decode([*data.train.tolist(), *data.val.tolist()])
        return {OLD: "old", NEW: "new"}[text]

    request = Request((source,), tokenizer="char")
    states, step = [], 0
    while True:
        step += 1
        if REPLACE:
            Path(source).write_text(OLD)
            prepare.prepare(request, out=Path(out), force=True)
        else:
            shutil.rmtree(out, ignore_errors=True)
        Path(source).write_text(NEW)
        child = os.fork()
        if child == 0:
            left = step
            prepare.prepare(request, out=Path(out), workers=1, force=True)
            os._exit(0)
        died = os.waitpid(child, 0)[1] != 0
        states.append(check(step))
        if not died:
            break
    prepare.prepare(request, out=Path(out), force=True)
    states.append(check(0))
    left_over = [p.name for p in Path(out).parent.iterdir() if p.name.startswith(".tmp-")]
    print(states, left_over, sep="|")
"""


@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_every_step(tmp_path: Path, replace: bool) -> None:
    script = textwrap.dedent(KILLED_AT_EVERY_STEP)
    head = f"OLD, NEW, REPLACE = {OLD!r}, {NEW!r}, {replace}\n"
    command = [sys.executable, "-c", head + script, tmp_path / "a.txt", tmp_path / "o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    states, left_over = done.stdout.strip().split("|")
    found = eval(states)
    assert found[-2:] == ["new", "new"]
    assert len(found) > 20
    # The new set is seen from one moment on, and stays; the old (or nothing) before.
    first = found.index("new")
    assert set(found[first:]) == {"new"}
    assert set(found[:first]) <= ({"old", "none"} if replace else {"none"})
    assert found[:first].count("none") <= (3 if replace else first)
    assert eval(left_over) == []


def test_a_failed_run_leaves_the_old_set(tmp_path: Path) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "o"
    path.write_text(OLD)
    request = Request((str(path),), tokenizer="byte")
    prepare.prepare(request, out=out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    path.write_bytes(b"new, but broken \xff text")
    with pytest.raises(UserError, match="invalid UTF-8"):
        prepare.prepare(request, out=out, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".o.lock", "a.txt", "o"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_stopping_in_the_middle_leaves_nothing(
    tmp_path: Path, interrupt: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(NEW * 100_000)

    def add(self: splits.SplitWriter, encoded: object) -> None:
        raise interrupt

    monkeypatch.setattr(splits.TailWriter, "add", add)
    expected = KeyboardInterrupt if interrupt is KeyboardInterrupt else UserError
    with pytest.raises(expected) as caught:
        prepare.prepare(Request((str(path),), tokenizer="byte"), out=tmp_path / "o")
    if expected is UserError:
        assert "the disk is full" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".o.lock", "a.txt"]
    assert not [t for t in threading.enumerate() if t.name.startswith("tokenize")]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root"
)
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False, timeout=LIMIT).returncode:
        pytest.skip("this system does not allow mounting")
    try:
        path = tmp_path / "a.txt"
        path.write_text("x y " * 500_000)
        with pytest.raises(UserError, match="the disk is full") as caught:
            prepare.prepare(Request((str(path),), tokenizer="byte"), out=disk / "o")
        assert "free some space" in caught.value.hint
        assert [p.name for p in disk.iterdir()] == [".o.lock"]
        path.write_text("x y " * 1000)
        made = prepare.prepare(Request((str(path),), tokenizer="byte"), out=disk / "o")
        assert tokens.open_data(made.folder, verify=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=LIMIT)


def test_a_second_run_waits_and_finds_the_work_done(tmp_path: Path) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "o"
    path.write_text(OLD)
    request = Request((str(path),), tokenizer="byte")
    lock = filelock.FileLock(tmp_path / ".o.lock")
    waiting, results = threading.Event(), []

    def report(line: str) -> None:
        if "waiting" in line:
            waiting.set()

    def second() -> None:
        results.append(prepare.prepare(request, out=out, report=report).fresh)

    lock.acquire()
    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(30)
    assert results == []
    assert not out.exists()
    lock.release()
    thread.join(30)
    assert results == [True]


@pytest.mark.parametrize("chosen", [True, False])
def test_many_runs_at_once_make_one_set(tmp_path: Path, nanogpt_home: Path, chosen: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text(OLD)
    out = tmp_path / "o" if chosen else None
    if not chosen:  # beside the set that this one was before its text changed
        prepare.prepare(Request((str(path),), tokenizer="char"))
    path.write_text(OLD * 200)
    code = (
        "import sys, json; from pathlib import Path; from nanogpt_cli.text.prepare import *;"
        "out = Path(sys.argv[2]) if sys.argv[2:] else None;"
        "made = prepare(Request((sys.argv[1],), tokenizer='char'), out=out);"
        "print(json.dumps(made.fresh))"
    )
    command = [sys.executable, "-c", code, str(path), *([str(out)] if out else [])]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    fresh = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sorted(fresh) == [False, False, True]
    made = out or nanogpt_home / "data" / "a-2-char"
    assert tokens.open_data(made, verify=True).manifest.train.tokens == int(len(OLD) * 200 * 0.9)
    if not chosen:
        found = sorted(path.name for path in look.prepared_folders())
        assert found == ["a-2-char", "a-char"]


@pytest.mark.parametrize("content", ["foreign", "partly", "file"])
def test_what_prepare_did_not_write_is_never_overwritten(tmp_path: Path, content: str) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "o"
    path.write_text(OLD)
    request = Request((str(path),), tokenizer="byte")
    if content == "file":
        out.write_text("mine")
    elif content == "partly":
        prepare.prepare(request, out=out)
        (out / "notes.md").write_text("mine")
    else:
        out.mkdir()
        (out / "train.bin").write_text("mine")
    with pytest.raises(UserError, match=r"/o (holds|is)"):
        prepare.prepare(request, out=out, force=True)
    kept = {"file": out, "partly": out / "notes.md", "foreign": out / "train.bin"}[content]
    assert kept.read_text() == "mine"
