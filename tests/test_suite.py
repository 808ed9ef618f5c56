"""The suite's own rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import programs
import pytest

TESTS = Path(__file__).parent
# One that waits as long as it is let.
WAITING = "import time; print('here', flush=True); time.sleep(1000)"


def endless(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that wait for a program or a thread, however long that takes."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        owner, name = ast.unparse(call.func.value), call.func.attr
        limited = any(keyword.arg == "timeout" for keyword in call.keywords)
        runs = owner == "subprocess" and name in ("run", "call", "check_call", "check_output")
        waits = name in ("communicate", "wait", "join") and not call.args
        if (runs or waits) and not limited:
            yield call


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_waited_for_without_a_limit(path: Path) -> None:
    found = [f"{path}:{call.lineno}" for call in endless(ast.parse(path.read_text("utf-8")))]
    assert not found, "give it timeout=programs.LIMIT, or use programs.finish"


def test_every_module_of_the_tests_has_a_name_of_its_own() -> None:
    """Of two, whichever is on the path first is imported; which, depends on the folders named."""
    counts = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, count in counts.items() if count > 1]


def test_programs_begin_with_the_signals_of_a_terminal() -> None:
    """However the suite was started: an ignored signal would be inherited."""
    code = (
        "import signal as s; names = ('SIGHUP', 'SIGTERM', 'SIGQUIT', 'SIGINT')\n"
        "print([n for n in names if hasattr(s, n) and s.getsignal(getattr(s, n)) == s.SIG_IGN])"
    )
    conftest = (
        "import signal, subprocess, sys\n"
        "for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        f"sys.path.insert(0, {str(TESTS)!r})\nimport conftest\n"
        f"print(subprocess.check_output([sys.executable, '-c', {code!r}], text=True, timeout=60))"
    )
    done = subprocess.run(
        [sys.executable, "-c", conftest], capture_output=True, text=True, timeout=programs.LIMIT
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_program_ends_with_its_test() -> None:
    process = programs.start([sys.executable, "-c", WAITING], text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    programs.end_all()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("named", "capture", "divided"),
    [
        ([TESTS], "fd", True),
        ([TESTS / "text", TESTS / "run"], "fd", True),
        ([TESTS / "run", __file__], "fd", False),
        ([f"{TESTS / 'run'}::test_that"], "fd", False),
        ([TESTS / "gpu"], "fd", False),
        ([TESTS], "no", False),
    ],
)
def test_folders_are_divided_among_processes_and_files_are_not(
    named: list[Path | str], capture: str, divided: bool, pytestconfig: pytest.Config
) -> None:
    option = SimpleNamespace(capture=capture, numprocesses="auto")
    asked = SimpleNamespace(args=[str(name) for name in named], option=option)
    count = pytestconfig.hook.pytest_xdist_auto_num_workers(config=asked)
    assert (count > 0) == divided
