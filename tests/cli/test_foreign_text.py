"""Text from outside steers no terminal and is no markup, whatever the command and the console.

Every command meets hostile names, logs, recipes, file names and vocabularies here; a new one fails
until it has a case in ``CASES``.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from test_language import ALL

from nanogpt_cli import __file__ as package
from nanogpt_cli import cli, printable
from nanogpt_cli.cli import console, lazy
from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui import still
from nanogpt_cli.tui.keys import PAGES
from nanogpt_cli.tui.state.session import RunSession

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# Blinking text, a window title, the clipboard, C1 controls, direction marks, markup of Rich.
TEXT = f"x\x1b[5m\x1b]0;t\x07\x1b]52;c;QUJD\x07\x9b5m\x85\x08\x0e{BIDI}\u2028[red]m[/][/x]:bell:"
NAME = TEXT.replace("/", "|")
FOLDER = f"odd[/]{NAME}"  # a folder in a folder, for a path that closes markup
OURS = re.compile(r"\x1b\[(?!5m)[\d;]*m|\x1b\[\?\d+[hl]|\x1b\[\d*[A-K]|\r")
TINY = [
    "model.block_size=16", "train.max_steps=4", "train.eval_every=2", "train.checkpoint_every=2",
    "optim.warmup_steps=1", "train.precision=fp32", "sample.max_new_tokens=9",
]  # fmt: skip


class Console(io.TextIOWrapper):
    """A stream of its own encoding, to a file or a terminal."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        self.terminal = terminal
        super().__init__(io.BytesIO(), encoding, newline="\n", write_through=True)

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def nanogpt(
    *arguments: str, encoding: str = "utf-8", terminal: bool = False
) -> tuple[int, str, str]:
    """Run the program in this process; exit code, stdout and stderr."""
    out, err = Console(encoding, terminal), Console(encoding, terminal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nanogpt", *arguments])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for cached in (console.stdout, console.stderr):
            cached.cache_clear()
        with pytest.raises(SystemExit) as stop:
            cli.main()
    for cached in (console.stdout, console.stderr):
        cached.cache_clear()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out.text(), err.text()


def harmful(text: str) -> list[str]:
    """The characters that could steer a terminal or hide in it."""
    kinds = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, and what ends lines
    return [c for c in text if c in BIDI or (unicodedata.category(c) in kinds and c not in "\n\t")]


def check(code: int, text: str) -> None:
    """What every command keeps to."""
    assert code in (0, 1, 2), text
    assert harmful(OURS.sub("", text)) == [], ascii(text)
    for word in ("this is a bug", "Traceback", "MarkupError"):
        assert word not in text, text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a hostile text, its tokens, a recipe, a trained run and its export."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NANOGPT_HOME", str(folder / "home"))
        patch.delenv("NO_COLOR", raising=False)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "200")
        Path(f"{FOLDER}.txt").parent.mkdir()
        Path(f"{FOLDER}.txt").write_text(f"A line. {TEXT}\n" * 60, encoding="utf-8")
        made = nanogpt("prepare", f"{FOLDER}.txt", "-t", "char", "--out", f"{FOLDER} data")
        check(*joined(made))
        assert made[0] == 0
        recipe = {"data": {"name": f"{FOLDER} data"}, "sample": {"prompt": f"A {TEXT}"}}
        toml = "".join(
            f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
            for section, values in recipe.items()
        )
        Path(f"{FOLDER}.toml").write_text(f'extends = "debug"\n{toml}[run]\nname = "tiny"\n')
        sets = [word for text in TINY for word in ("--set", text)]
        made = nanogpt("train", f"{FOLDER}.toml", *sets)
        check(*joined(made))
        assert made[0] == 0, made
        odd = Path("runs") / FOLDER
        odd.parent.mkdir()
        shutil.copytree("runs/tiny", odd)
        shutil.copytree("runs/tiny", Path("runs") / NAME)
        for run in (odd, Path("runs") / NAME):
            hostile_log(run)
        made = nanogpt("export", "tiny", "--to", "hf", "--no-verify", "--out", f"{FOLDER} out")
        assert made[0] == 0, made
        Path(f"{FOLDER}.py").write_text(f"n_layer = 2\nout_dir = {TEXT!r}  # {TEXT}\n")
        yield folder


def hostile_log(run: Path) -> None:
    """Events whose every text is hostile, behind those of a real run."""
    with EventWriter(run / "events.jsonl") as write:
        row = {TEXT: [1.0, 2.0]}
        write(events.RunStarted(
            name=TEXT, time=1.0, step=2, max_steps=9, device=TEXT, precision=TEXT, host=TEXT,
            recipe={TEXT: {TEXT: TEXT}}, expected=row, notes=(TEXT,), n_layer=2,
        ))  # fmt: skip
        for step in (3, 4):
            write(events.Step(step=step, loss=2.0, lr=1e-3, grad_norm=1.0, tokens=64,
                              tokens_per_s=9.0, time=float(step)))  # fmt: skip
        write(events.Layers(step=4, stats=row, every=1, time=4.0))
        write(events.Sample(step=4, prompt=TEXT, text=TEXT, time=4.0))
        write(events.Alarm(step=4, kind=TEXT, severity="warning", message=TEXT, advice=TEXT))
        write(events.Command(step=4, name=TEXT, argument=TEXT, result=TEXT))
        write(events.Incident(step=4, kind=TEXT, message=TEXT, path=TEXT, action=TEXT))
        write(events.Note(step=4, message=TEXT, level=TEXT))
        write(events.Checkpoint(step=4, path=TEXT))
        write(events.RunEnded(step=4, reason=TEXT, message=TEXT, checkpoint=TEXT, time=5.0))
    (run / "stdout.log").write_text(TEXT, encoding="utf-8")


def joined(made: tuple[int, str, str]) -> tuple[int, str]:
    return made[0], made[1] + made[2]


RUN = f"runs/{FOLDER}"
SIZES = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--vocab-size", "20",
         "--block-size", "16"]  # fmt: skip
# Command -> argument lists. Each either works on hostile input or is refused for it.
CASES: dict[str, list[list[str]]] = {
    "prepare": [[f"{FOLDER}.txt", "-t", "char", "--out", f"{FOLDER} data"], [TEXT], ["--list"],
                [f"{FOLDER}.txt", "-t", TEXT], [f"{FOLDER}.txt", "--encoding", TEXT]],
    "train": [[TEXT], [f"{FOLDER}.toml", "--set", f"{TEXT}=1"], [RUN, "--resume"],
              [f"{FOLDER}.toml", "--set", f"run.name={TEXT}"],
              ["debug", "--set", f"data.name={TEXT}"]],
    "watch": [*([RUN, NAME, "--once", "--page", page] for page in PAGES), [RUN, "--plain"],
              [RUN, "--json"], [TEXT], [RUN, "--once", "--page", TEXT]],
    "sample": [[RUN, "-n", "5", "-p", TEXT, "--crop"], [TEXT], [RUN, "-n", "5", "--json", "--crop"],
               [RUN, "-n", "3", "--logprobs", "--crop"], [RUN, "-n", "3", "-p", "\x01"],
               [RUN, "--prompt-file", TEXT], [RUN, "--prompts", TEXT]],
    "init-inspect": [["--from", RUN], ["--from", TEXT], [TEXT], [*SIZES, "--init", TEXT],
                     [*SIZES, "--compare", TEXT], [*SIZES, "--theory"]],
    "eval": [[RUN], [TEXT], [RUN, "--data", TEXT]],
    "runs": [[], ["--out", TEXT], ["--filter", TEXT], ["--filter", f"note:{TEXT}"]],
    "runs note": [[NAME, TEXT], [NAME], [NAME, "--json"], [TEXT], [RUN, TEXT * 20]],
    "runs tag": [[NAME, TEXT], [NAME], [NAME, "--remove", TEXT], [TEXT, "a"]],
    "runs diff": [[NAME, "tiny"], [TEXT, "tiny"], [NAME, "tiny", "--json"]],
    "runs plot": [[NAME, "tiny", "--json"], [TEXT], ["tiny", "--metric", TEXT, "--json"]],
    "explain": [[TEXT], ["growth", "--init", TEXT], ["init", "--from", NAME]],
    "why": [[NAME], [TEXT], [NAME, "--json"]],
    "runs csv": [[RUN], [TEXT]],
    "replay": [[RUN], [TEXT], [RUN, "3"]],
    "export": [[RUN, "--to", "nanogpt", "--no-verify", "--out", f"{FOLDER} again"], [TEXT],
               [RUN, "--to", TEXT]],
    "import": [[f"{FOLDER} out/hf", "--name", "back", "--data", TEXT], [TEXT],
               [f"{FOLDER} out/hf", "--name", TEXT]],
    "recipes": [[]],
    "recipe show": [[f"{FOLDER}.toml"], [f"{FOLDER}.toml", "--json"], [TEXT]],
    "recipe check": [[f"{FOLDER}.toml"], [f"{FOLDER}.toml", "--set", f"model.{TEXT}=1"], [TEXT]],
    "recipe diff": [[f"{FOLDER}.toml", "small"], [TEXT, "small"]],
    "recipe schema": [[]],
    "recipe new": [[TEXT], ["own", "--data", TEXT], ["own", "--extends", TEXT],
                   ["own", "--data", f"{FOLDER}.txt", "--out", f"{FOLDER} new.toml"]],
    "recipe from-nanogpt": [[f"{FOLDER}.py"], [TEXT], [f"{FOLDER}.py", f"--{TEXT}=1"]],
    "plan": [[f"{FOLDER}.toml", "--flops", "1e9", "--memory", "8"], [TEXT]],
    "data": [[]],
    "data inspect": [[f"{FOLDER} data"], [f"{FOLDER} data", "--json"], [TEXT]],
    "verify-resume": [[TEXT], [f"{FOLDER}.toml", "--set", f"optim.{TEXT}=1"]],
    "bench train": [["--recipe", TEXT]],
    "bench race": [["--against", TEXT]],
    "bench sample": [[TEXT]],
    "bench startup": [[TEXT]],
    "bench prepare": [[TEXT]],
    "bench inspect": [[TEXT]],
    "bench tui": [[TEXT]],
    "bench gpu": [["--only", TEXT], ["--device", TEXT], ["--against", TEXT]],
    "doctor": [["--no-compile"], ["--watch"], [TEXT]],
    "cache list": [[]],
    "docs": [[], [TEXT]],
    "cache clear": [[TEXT]],
}  # fmt: skip


def test_every_command_has_a_case() -> None:
    assert set(CASES) == {name for name, _ in ALL}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("NANOGPT_HOME", str(place / "home"))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("nanogpt_cli.machine.capabilities._SECONDS", 0.01)
    monkeypatch.setattr(
        "nanogpt_cli.machine.capabilities._SIDE", {"cpu": 64, "cuda": 64, "mps": 64}
    )


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_hostile_text_is_shown_and_never_sent(name: str, terminal: bool) -> None:
    for arguments in CASES[name]:
        code, out, err = nanogpt(*name.split(), *arguments, terminal=terminal)
        raw = name == "sample" and not terminal and "--json" not in arguments
        check(code, err if raw else out + err)
        if not terminal:
            assert "\x1b" not in err


def read_log(run: str) -> dict[str, Any]:
    code, out, _ = nanogpt("watch", run, "--json")
    assert code == 0
    return dict(json.loads(out))


def test_json_holds_the_very_text(place: Path) -> None:
    found = read_log(NAME)
    assert found["run"] == NAME
    assert TEXT in [alarm["message"] for alarm in found["alarms"]]
    code, out, _ = nanogpt("recipe", "show", f"{FOLDER}.toml", "--json", encoding="ascii")
    assert code == 0
    assert json.loads(out)["values"]["sample.prompt"]["value"] == f"A {TEXT}"
    code, out, _ = nanogpt("sample", RUN, "-n", "9", "--crop", "--seed", "1", "--json")
    assert code == 0
    assert json.loads(out)["samples"][0]["prompt"] == f"A {TEXT}"


def test_toml_holds_the_very_text(place: Path) -> None:
    Path("o.py").write_text(f"dataset = {TEXT + 'é→'!r}\n", encoding="utf-8")
    for encoding in ("utf-8", "latin-1", "ascii"):
        code, out, err = nanogpt("recipe", "from-nanogpt", "o.py", encoding=encoding)
        assert code == 0, err
        assert harmful(out) == []
        assert tomllib.loads(out)["data"]["name"] == f"data/{TEXT}é→"
    new = ("recipe", "new", "mine", "--data", f"{FOLDER}.txt", "-y", "--out", f"{NAME}\n.toml")
    check(*joined(nanogpt(*new)))
    check(*joined(nanogpt("recipe", "check", f"{NAME}\n.toml")))


def test_what_enters_a_view_is_printable(place: Path) -> None:
    """The first gate: escapes are measured and wrapped like any text."""
    session = RunSession(Path("runs") / NAME)
    still.load([session])
    view = session.view
    assert view.started is not None
    assert view.name == printable.printable(NAME)
    assert view.alarms[-1].advice == printable.printable(TEXT)
    for event in (view.started, *view.samples, *view.alarms, *view.happenings):
        assert harmful(json.dumps(asdict(event), ensure_ascii=False)) == []
    assert harmful(session.output() + "".join(view.layers.names())) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_view_that_kept_its_texts_is_still_drawn_harmless(page: str, place: Path) -> None:
    """The second gate: what a widget is given, whatever it is."""
    sessions = [RunSession(run, exact=True) for run in (Path("runs") / NAME, Path(RUN))]
    still.load(sessions)
    assert "\x1b" in sessions[0].view.samples[-1].text
    drawn = still.still(sessions, (160, 50), page=page)
    assert harmful(drawn.text) == []
    assert harmful(OURS.sub("", drawn.ansi)) == []
    ElementTree.fromstring(drawn.svg)


@pytest.mark.parametrize("page", PAGES)
def test_pictures_of_a_hostile_log_are_well_formed(page: str, place: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    code, _, err = nanogpt("watch", RUN, NAME, "--svg", str(picture), "--page", page)
    assert code == 0, err
    text = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert harmful(text) == []


def test_markup_is_shown_literally(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = nanogpt("runs")
    assert "[red]m[|][|x]:bell:" in out
    _, out, _ = nanogpt("watch", NAME, "--once", "--page", "logs", "--size", "300x60")
    assert "[red]m[/][/x]:bell:" in out


def test_the_model_writes_raw_into_a_pipe_and_harmless_on_a_terminal(place: Path) -> None:
    arguments = ("sample", RUN, "-n", "60", "--crop", "--temperature", "3", "--seed", "5")
    code, raw, _ = nanogpt(*arguments)
    assert code == 0
    assert raw.startswith(f"A {TEXT}")
    code, shown, _ = nanogpt(*arguments, terminal=True)
    assert code == 0
    assert OURS.sub("", shown) == printable.printable(raw)
    assert harmful(OURS.sub("", shown)) == []


def test_an_interactive_session_is_harmless_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(["A \x1b[5m\x07", "/stop \x1b]0;t\x07", "/\x1b[5m", "/show", "/quit", ""])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = nanogpt("sample", RUN, "-n", "9", "-i", terminal=True)
    check(code, out + err)
    assert "no command /\\x1b[5m" in err


def test_a_shell_is_not_offered_names_that_would_need_escapes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{NAME}.toml").write_text("")
    monkeypatch.setenv("_NANOGPT_COMPLETE", "complete_bash")
    for line in ("nanogpt watch ", "nanogpt recipe show "):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
        code, out, err = nanogpt()
        check(code, out + err)
        assert len(out.split()) > 0
        assert "\\x1b" not in out


CONSOLES = ("ascii", "latin-1", "cp1252")


@pytest.mark.parametrize("encoding", CONSOLES)
def test_every_help_page_can_be_read_on_any_console(encoding: str) -> None:
    names = sorted({"", *lazy.TABLE, *(name for name, _ in ALL)})
    for name in names if encoding == "ascii" else ["", *lazy.TABLE]:
        code, out, err = nanogpt(*name.split(), "--help", encoding=encoding)
        assert code == 0, (name, err)
        assert out.startswith("Usage: nanogpt")


# One real invocation of each command at least; those that draw more than letters come first.
REAL = [
    *(["watch", "tiny", "--once", "--page", page] for page in PAGES),
    ["sample", "tiny", "-n", "5", "--crop", "-p", "A \u2028\u202e"],
    ["sample", "tiny", "-n", "5", "-p", "😀"],
    ["sample", "tiny", "-n", "5", "--crop", "--json"],
    ["sample", "tiny", "-n", "3", "--crop", "--logprobs"],
    ["init-inspect", *SIZES, "--hist"], ["runs"], ["prepare", "--list"], ["init-inspect", "--list"],
    ["prepare", "text.txt", "-t", "char", "--out", "again"], ["watch", "tiny", "--plain"],
    ["eval", "tiny"], ["runs", "diff", "tiny", NAME], ["runs", "csv", "tiny"], ["recipes"],
    ["replay", "tiny", "3"], ["recipe", "show", f"{FOLDER}.toml"], ["recipe", "check", "small"],
    ["recipe", "diff", "small", "debug"], ["recipe", "schema"], ["data"],
    ["data", "inspect", f"{FOLDER} data"], ["cache", "list"], ["doctor", "--no-compile"],
    ["plan", f"{FOLDER}.toml", "--flops", "1e9", "--memory", "8"], ["recipe", "new", "é→"],
    ["train", f"{FOLDER}.toml", "--set", "train.max_steps=1", "--set", "optim.warmup_steps=0",
     "--set", "model.block_size=16"],
]  # fmt: skip


@pytest.mark.parametrize("encoding", CONSOLES)
def test_every_answer_can_be_read_on_any_console(encoding: str, place: Path) -> None:
    Path("text.txt").write_text("Grüße → 😀 …\n" * 90, encoding="utf-8")
    for arguments in REAL if encoding == "ascii" else REAL[:12]:
        code, out, err = nanogpt(*arguments, encoding=encoding)
        raw = arguments[0] == "sample" and "--json" not in arguments
        check(code, err if raw else out + err)
        assert code == 0 or arguments[-1] in ("😀", "é→"), (arguments, err)


class Terminal:
    """The program as a child on a pseudo terminal of 120 by 40."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.seen = ""
        self._fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nanogpt_cli", *arguments], stdin=child, stdout=child,
            stderr=child, start_new_session=True, env=environment_with(**environment),
        )  # fmt: skip
        os.close(child)

    def read_until(self, text: str = "") -> None:
        """Read until ``text`` has been seen, or to the end."""
        begin, deadline = len(self.seen), time.monotonic() + 60
        while not text or text not in OURS.sub("", self.seen[begin:]):
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not to be seen: {self.seen[-2000:]!r}"
            data = b""
            with contextlib.suppress(OSError):  # the child has closed its side
                data = os.read(self._fd, 1 << 16)
            if not data:
                assert not text, self.seen[-2000:]
                return
            self.seen += data.decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        self.read_until()
        return self._process.wait(60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(60)
        os.close(self._fd)


def environment_with(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "PYTHONIOENCODING")}
    return {**kept, "PYTHONPATH": str(Path(package).parents[1]), "OMP_NUM_THREADS": "1", **changes}


def test_a_real_terminal_gets_no_foreign_sequence(place: Path) -> None:
    for arguments in (["sample", RUN, "-n", "9", "--crop"], ["runs"]):
        with Terminal(*arguments) as terminal:
            terminal.end()
        assert "\\x1b" in terminal.seen
        assert harmful(OURS.sub("", terminal.seen)) == []


def test_the_live_dashboard_sends_no_foreign_sequence(place: Path) -> None:
    with Terminal("watch", RUN, NAME) as terminal:
        for keys, shown in (
            ("", "4/9"), ("2", "residual stream"), ("3", "best validation loss"), ("4", "samples"),
            ("5", "evaluation"),  # the log has been read
            ("e", "saved"), ("P", "no trainer would answer"), ("?", "Pages"),
            ("q", "what happened"),
        ):  # fmt: skip
            terminal.type(keys)
            terminal.read_until(shown)
        terminal.type("q")
        assert terminal.end() == 0
    seen = re.sub(r"\x1b\]22;\w+\x07", "", terminal.seen)  # Textual's own: the mouse pointer
    for foreign in ("\x1b[5m", "\x1b]0;", "\x1b]52;", "\x07", "\x9b", "\x85", "\x08", *BIDI):
        assert foreign not in seen
    assert "\\x1b[5m" in seen


FULL = ["runs", "recipes", "recipe schema", "data --json", "cache list --json", "watch tiny --json",
        "--help", "train --help", "--version", "sample tiny -n 3 --crop", "eval tiny"]  # fmt: skip


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_below_stdout_is_one_line(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it shows at once or only when what was written is flushed at the end."""
    err = Console("utf-8", terminal=False)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "argv", ["nanogpt", *command.split()])
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", err)
        for cached in (console.stdout, console.stderr):
            cached.cache_clear()
        with pytest.raises(SystemExit) as stop:
            cli.main()
    lines = [line for line in err.text().splitlines() if "error" in line]
    assert stop.value.code == 2
    assert lines == ["error: cannot write the output: the disk is full"]


def test_commentary_nobody_can_read_stops_no_work(place: Path) -> None:
    made = [sys.executable, "-m", "nanogpt_cli", "runs"]
    for stdout, stderr, code in (("/dev/null", "/dev/full", 0), ("/dev/full", "/dev/full", 2)):
        with Path(stdout).open("w") as out, Path(stderr).open("w") as err:
            done = subprocess.run(made, stdout=out, stderr=err, env=environment_with(), timeout=120)
        assert done.returncode == code


def test_closed_streams_are_nobody_listening(place: Path) -> None:
    program = f"{sys.executable} -m nanogpt_cli recipes"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{program} {closed}"], capture_output=True, text=True, timeout=120,
            env=environment_with(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


LATIN = os.fsdecode(b"caf\xe9")


def test_file_names_in_another_encoding_work(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"{LATIN} in"
    folder.mkdir()
    for name in ("a.txt", f"{LATIN}.txt"):
        (folder / name).write_text("A line of text.\n" * 90)
    for again in (False, True):
        code, out, err = nanogpt("prepare", str(folder), "-t", "byte", "--out", f"{folder} data")
        check(code, out + err)
        assert code == 0, err
        assert ("already prepared" in err) == again
    code, out, err = nanogpt("data", "inspect", f"{folder} data")
    check(code, out + err)
    assert code == 0
    assert r"caf\udce9.txt" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "tiny", "-p", LATIN],
        ["sample", "tiny", "-p", "A", "--stop", LATIN],
        ["train", "debug", "--set", f"data.name={LATIN}"],
        ["recipe", "new", LATIN], ["recipe", "show", LATIN], ["watch", LATIN], ["import", LATIN],
        ["recipe", "new", "own", "--data", LATIN], ["prepare", LATIN], ["data", "inspect", LATIN],
        ["prepare", "r.jsonl", "-t", "byte", "--text-field", LATIN],
        ["prepare", "r.jsonl", "-t", "byte", "--encoding", LATIN],
    ],
)  # fmt: skip
def test_arguments_in_another_encoding_are_one_clear_line(
    arguments: list[str], place: Path
) -> None:
    Path("r.jsonl").write_text('{"text": "A line."}\n' * 90)
    code, out, err = nanogpt(*arguments)
    check(code, out + err)
    assert r"caf\udce9" in err or "is not UTF-8 text" in err


def test_half_a_pair_in_a_file_of_prompts_is_one_clear_line(place: Path) -> None:
    Path("p.jsonl").write_text('{"prompt":"A\\ud83d"}\n')
    code, out, err = nanogpt("sample", "tiny", "--prompts", "p.jsonl")
    check(code, out + err)
    assert "p.jsonl, line 1" in err
    assert "half a surrogate pair" in err


def test_utf8_arguments_are_understood_where_the_locale_is_c(place: Path) -> None:
    split = "é".encode().decode("ascii", "surrogateescape")
    _, _, err = nanogpt("sample", "tiny", "-n", "3", "-p", split)
    assert "'é' (U+00E9)" in err
    done = subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "recipe", "show", "small", "--set",
         "sample.prompt=é→"], capture_output=True, timeout=120,
        env=environment_with(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    "name", ["rot13", "hex", "base64", "zip", "undefined", "mbcs", "punycode", "idna", "none", ""]
)
def test_prepare_takes_only_encodings_of_text(name: str, place: Path) -> None:
    Path("text.txt").write_text("A line of text.\n" * 90)
    code, out, err = nanogpt("prepare", "text.txt", "-t", "byte", "--encoding", name)
    assert (code, out) == (2, "")
    known = name not in ("mbcs", "none", "")  # mbcs is Windows' own
    problem = (
        f"{name!r} is not an encoding of text files" if known else f"unknown encoding {name!r}"
    )
    assert err.startswith(f"error: {problem}\n")


@pytest.mark.parametrize("name", ["utf-16", "utf-32", "utf-8-sig", "cp1252", "gb18030", "utf-7"])
def test_prepare_reads_other_encodings_of_text(name: str, place: Path, tmp_path: Path) -> None:
    text = "A line of text.\n" * 90
    (tmp_path / "t.txt").write_bytes(text.encode(name))
    made = ("prepare", str(tmp_path / "t.txt"), "-t", "byte", "--out", str(tmp_path / "d"))
    code, _, err = nanogpt(*made, "--encoding", name)
    assert code == 0, err
    code, out, _ = nanogpt("data", "inspect", str(tmp_path / "d"), "--json")
    assert json.loads(out)["manifest"]["receipt"]["characters"] == len(text)


def test_utf16_without_its_mark_is_one_clear_line(place: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(("A line.\n" * 90).encode("utf-16-le"))
    code, out, err = nanogpt(
        "prepare", str(tmp_path / "t.txt"), "-t", "byte", "--encoding", "utf-16"
    )
    check(code, out + err)
    assert "read as utf-16-le; it has no byte-order mark" in err


@given(st.text())
def test_printable_text_is_left_alone_and_the_rest_made_so(text: str) -> None:
    shown = printable.printable(text)
    assert harmful(shown) == []
    assert printable.printable(shown) == shown
    if not harmful(text) and text.isprintable():
        assert shown == text


@given(st.text(), st.sampled_from(["utf-8", *CONSOLES, "cp437", "koi8-r"]))
def test_escaped_json_and_toml_hold_the_same_value(text: str, encoding: str) -> None:
    escaped = printable.json_escaped(json.dumps([text], ensure_ascii=False), encoding)
    assert harmful(escaped) == []
    assert json.loads(escaped.encode(encoding).decode(encoding)) == [text]
    plain = text.encode("utf-8", "ignore").decode()  # TOML has no lone surrogates
    escaped = printable.toml_escaped(tomli_w.dumps({"v": plain}), encoding)
    assert harmful(escaped) == []
    assert tomllib.loads(escaped.encode(encoding).decode(encoding)) == {"v": plain}


@given(st.text(), st.sampled_from(["utf-8", *CONSOLES, "cp437", "utf-16"]))
def test_any_text_can_be_written_on_any_console(text: str, encoding: str) -> None:
    printable.encodable(text, encoding).encode(encoding)
