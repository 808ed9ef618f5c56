"""``nanogpt docs``: the manual's pages as a list, as Markdown, and drawn on a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT
from typer.testing import CliRunner

from nanogpt_cli import places
from nanogpt_cli.cli import app, console, docs

PAGES = sorted(places.docs_folder().glob("*.md"))
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def nanogpt(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["docs", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_list_names_every_page_with_its_heading() -> None:
    lines = nanogpt().splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in PAGES]
    for line, path in zip(lines, PAGES, strict=True):
        assert line.endswith(docs.title(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_pipe_gets_the_page_as_it_is(path: Path) -> None:
    assert nanogpt(path.stem) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("width", [60, 100, 200])
def test_every_page_can_be_drawn(path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.stdout(), "_width", width)
    text = path.read_text(encoding="utf-8")
    drawn = _ESCAPES.sub("", docs.drawing(text))
    assert docs.title(text) in " ".join(drawn.split())
    assert "](" not in drawn
    shown = [line.rstrip() for line in drawn.splitlines()]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for line in "".join(blocks).splitlines():
        assert line.rstrip() in shown, "output is shown as it is, however narrow the screen"
    output = {line.rstrip() for line in "".join(blocks).splitlines()}
    prose = [line for line in shown if line not in output]
    assert max(map(len, prose)) <= min(width, 100)


def test_an_unknown_topic_is_answered_with_the_nearest() -> None:
    for topic, said in (("initialization", "did you mean initialisation?"),
                        ("train", "nanogpt train --help describes the command"),
                        ("../../README", "pages: ")):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "nanogpt_cli", "docs", topic],
            capture_output=True, text=True, check=False, timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"the manual has no page {topic!r}" in done.stderr
        assert said in done.stderr


def test_json_has_the_text_of_the_page_that_was_asked_for() -> None:
    import json

    (page,) = json.loads(nanogpt("python", "--json"))["pages"]
    assert page["text"] == Path(page["path"]).read_text(encoding="utf-8")
    assert all("text" not in page for page in json.loads(nanogpt("--json"))["pages"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("lines", "paged"), [("20", True), ("1000", False)])
def test_a_page_longer_than_the_screen_opens_in_the_pager(lines: str, paged: bool) -> None:
    code, seen = on_a_terminal(
        "docs", "data", LINES=lines, COLUMNS="100", PAGER="sed s/^/PAGED/", NO_COLOR=""
    )
    assert code == 0
    assert ("PAGED" in seen) == paged
    assert "\x1b[" in seen
    assert "Data: from any text to tokens" in seen
    assert "nanogpt docs benchmarks" in _ESCAPES.sub("", seen)  # a link, as the command to type


def on_a_terminal(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and everything that is shown."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(variables, TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-m", "nanogpt_cli", *arguments])
    seen = b""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(int(LIMIT))
    try:
        while part := os.read(terminal, 4096):
            seen += part
    except OSError:  # how Linux says that the other side has been closed
        pass
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), seen.decode()


def test_the_manual_needs_no_heavy_library() -> None:
    code = (
        "import sys\nfrom nanogpt_cli.cli import app\n"
        "try:\n    app({0!r})\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'textual', 'rich') if m in sys.modules]"
        "\nsys.stderr.write('heavy:' + ','.join(heavy))"
    )
    for arguments in (["docs"], ["docs", "training"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)],
            capture_output=True, text=True, check=True, timeout=LIMIT,
        )  # fmt: skip
        assert done.stderr.endswith("heavy:")
