"""``nanogpt prepare``, ``data`` and ``bench prepare`` as people run them."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
from programs import LIMIT
from rich.cells import cell_len
from rich.console import Console

from nanogpt_cli.cli import console, prepare_view
from nanogpt_cli.text import prepare

Run = Callable[..., subprocess.CompletedProcess[str]]
TEXT = "To be, or not to be: that is the question.\n" * 30


@pytest.fixture
def nanogpt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The program in this process, in the test's own folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        code = programs.nanogpt(*words)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return run


def test_prepare_then_inspect(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "own.txt").write_text(TEXT)
    first = nanogpt("prepare", "own.txt", "-t", "char", "--out", "data/own-char", "--json")
    assert first.returncode == 0, first.stderr
    manifest = json.loads(first.stdout.splitlines()[-1])
    assert manifest["train"]["tokens"] == int(len(TEXT) * 0.9)
    assert "round trip" in first.stderr
    assert "\r" not in first.stderr  # no progress bar where nobody watches
    assert first.stderr.splitlines()[-1].startswith("next: nanogpt train")

    again = nanogpt("prepare", "own.txt", "-t", "char", "--out", "data/own-char")
    assert "already prepared" in again.stderr
    assert again.stdout == ""

    seen = nanogpt("data", "inspect", "own", "--windows", "1", "--top", "99", "--json")
    assert seen.returncode == 0, seen.stderr
    told = json.loads(seen.stdout)
    assert told["manifest"] == manifest
    assert told["windows"][0]["text"] in TEXT
    assert sum(told["histogram"].values()) == len(TEXT)
    table = nanogpt("data", "inspect", "data/own-char")
    assert "both sha256 verified" in table.stdout
    assert "own" in nanogpt("data").stdout


def test_wide_tokens_leave_the_shares_in_their_column(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "zh.txt").write_text("日本 ab\n" * 200, encoding="utf-8")
    assert nanogpt("prepare", "zh.txt", "-t", "char", "--out", "zh").returncode == 0
    rows = [row for row in nanogpt("data", "inspect", "zh").stdout.splitlines() if "% █" in row]
    assert any("'日'" in row for row in rows)
    assert len({cell_len(row[: row.index("%")]) for row in rows}) == 1


def test_inspect_fails_on_damage(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "own.txt").write_text(TEXT)
    assert nanogpt("prepare", "own.txt", "-t", "byte", "--out", "o").returncode == 0
    path = tmp_path / "o" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    seen = nanogpt("data", "inspect", "o")
    assert seen.returncode == 1
    assert "it was truncated" in seen.stderr
    missing = nanogpt("data", "inspect", "nothing")
    assert missing.returncode == 2
    assert "no prepared data set is called 'nothing'" in missing.stderr


def test_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "prepare", "-", "-t", "byte", "--out", "o", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False, input=TEXT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["receipt"]["bytes"] == len(TEXT)


def test_list_names_every_set(nanogpt: Run) -> None:
    from nanogpt_cli.text.catalogue import SETS

    done = nanogpt("prepare", "--list")
    assert done.returncode == 0
    assert all(name in done.stdout for name in SETS)
    rows = json.loads(nanogpt("prepare", "--list", "--json").stdout)["sets"]
    assert [row["name"] for row in rows] == list(SETS)


def test_bad_input_is_one_message(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine \xff")
    done = nanogpt("prepare", "bad.txt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "bad.txt: invalid UTF-8 at byte 5" in done.stderr
    assert "Traceback" not in done.stderr


def test_already_prepared_imports_no_torch(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / "own.txt").write_text(TEXT)
    assert nanogpt("prepare", "own.txt", "-t", "char").returncode == 0
    code = (
        "import sys; sys.argv = ['nanogpt', 'prepare', 'own.txt', '-t', 'char']\n"
        "from nanogpt_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'tiktoken', 'tokenizers', 'textual') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert "already prepared" in done.stderr
    assert done.stdout.strip() == "[]"


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    read, write = os.pipe()
    run = programs.start(
        [sys.executable, "-m", "nanogpt_cli", "prepare", "-", "-t", "byte", "--out", "o"],
        cwd=tmp_path, stdin=read, text=True,
    )  # fmt: skip
    os.close(read)
    try:
        # More than the pipe holds: once this returns, the program is reading.
        os.write(write, b"x" * 200_000)
        run.send_signal(signal.SIGINT)
        _, stderr = programs.finish(run)
    finally:
        os.close(write)
    assert run.returncode == 130
    assert "stopped: nothing was written" in stderr
    assert "Traceback" not in stderr
    assert [p.name for p in tmp_path.iterdir()] == [".o.lock"]


@pytest.mark.parametrize(("repeats", "advised"), [(30, "char"), (3000, "bpe:512")])
def test_a_vocabulary_too_large_for_the_text_is_remarked(
    tmp_path: Path, nanogpt: Run, asset_cache, repeats: int, advised: str
) -> None:
    asset_cache("gpt2-vocab.bpe")
    (tmp_path / "own.txt").write_text(TEXT * (repeats // 30))
    first = nanogpt("prepare", "own.txt")
    assert first.returncode == 0, first.stderr
    assert "of the 50,257 tokens of the vocabulary occur" in first.stderr
    assert f"--tokenizer {advised} " in first.stderr
    followed = nanogpt("prepare", "own.txt", "--tokenizer", "char")
    assert "of the vocabulary occur" not in followed.stderr


def test_bench_measures_beside_the_document_loop(
    tmp_path: Path, asset_cache, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanogpt_cli.bench import prepare as bench

    asset_cache("gpt2-vocab.bpe")
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    bench.prepare(megabytes=1, source=path, workers=2, scratch=tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["prepare"]] == [
        "encode_ordinary loop", "prepare gpt2", "prepare char", "prepare byte",
    ]  # fmt: skip
    loop, gpt2, char, byte = told["prepare"]
    documents = loop["bytes"] // len(TEXT)
    # The loop ends every document; as one text the same tokens come without these ends.
    assert loop["tokens"] - documents <= gpt2["tokens"] <= loop["tokens"]
    assert char["tokens"] == byte["tokens"] == loop["bytes"] >= 10**6
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_without_end_on_standard_input_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanogpt_cli", "prepare", "-", "-t", "byte", "--out", "made"]
    for device, said in (("/dev/zero", "a device without end"), ("/dev/null", "no text in stdin")):
        with Path(device).open("rb") as endless:
            done = subprocess.run(
                command, stdin=endless, capture_output=True, text=True, cwd=tmp_path,
                timeout=LIMIT, check=False,
            )  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_each_phase_of_a_bpe_is_shown_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("she sells sea shells by the sea shore. " * 90)
    written = io.StringIO()
    drawn = Console(file=written, force_terminal=terminal, width=100)
    monkeypatch.setattr(console, "stderr", lambda: drawn)
    with prepare_view.progress_line() as progress:
        prepare.prepare(prepare.Request((str(path),), tokenizer="bpe:270"), progress=progress)
    shown = written.getvalue()
    phases = [shown.find(phase) for phase in ("reading for the BPE", "merging pairs", "tokenizing")]
    if terminal:
        assert -1 < phases[0] < phases[1] < phases[2]
    else:
        assert shown == ""


@pytest.mark.parametrize(("out", "how"), [((), "set NANOGPT_HOME"), (("--out", "set"), "--out")])
def test_a_read_only_disk_is_told_how_to_write_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: tuple[str, ...],
    how: str,
) -> None:
    """Root may write anywhere, so the refusal of the system is imitated."""

    def refuse(*arguments: object, **keys: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("to be or not to be\n" * 20)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    assert programs.nanogpt("prepare", "notes.txt", "-t", "byte", *out) == 2
    said = capsys.readouterr().err
    assert "the disk is read-only" in said
    assert how in said
