"""What produced a run: versions, machine, commit."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys

import numpy as np
import torch

from nanogpt_cli.version import __version__


@functools.cache
def versions() -> dict[str, str]:
    """Versions of this package, Python, torch and NumPy; platform, git commit and command line."""
    return {
        "nanogpt-cli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "git": _commit(),
        "command": " ".join(sys.orig_argv[1:])[:500],
    }


def _commit() -> str:
    """The git commit of the current folder, with ``+`` for uncommitted changes; "" without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
