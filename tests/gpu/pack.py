"""Pack what ``nanogpt bench gpu`` needs on a machine that has PyTorch and NumPy but no network.

    python tests/gpu/pack.py wheels

makes a folder of wheels, this program's among them, and says how to install them there. Libraries
that the command imports for other purposes only (the dashboard, tokenizers) are left out.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("typer", "rich", "pydantic", "safetensors", "tomli-w", "platformdirs", "filelock")
# For ``pytest tests/gpu`` there.
TESTING = ("pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis")
# pip takes each tag by its letter; a wheel for an older system runs on a newer one.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_LIMIT_S = 600


def requirements(*, tests: bool) -> list[str]:
    """The packages with the versions that ``pyproject.toml`` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in asked}
    return [by_name[name] for name in (*NEEDED, *(TESTING if tests else ()))]


def main() -> None:
    """Download the wheels, build this program's, and say what to type on the other machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to put the wheels")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--platform", action="append", help="wheel tag of that machine; repeatable")
    parser.add_argument("--tests", action="store_true", help="pack what pytest tests/gpu needs")
    given = parser.parse_args()
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform={tag}" for tag in given.platform or PLATFORMS]
    subprocess.run(
        [*pip, "download", "--only-binary=:all:", "--implementation=cp",
         f"--python-version={given.python}", *platforms, f"--dest={given.folder}",
         *requirements(tests=given.tests)],
        check=True, timeout=_LIMIT_S,
    )  # fmt: skip
    subprocess.run(
        [*pip, "wheel", "--no-deps", f"--wheel-dir={given.folder}", str(ROOT)],
        check=True, timeout=_LIMIT_S,
    )  # fmt: skip
    wheels = f"{shlex.quote(given.folder.name)}/*.whl"
    sys.stdout.write(
        "there, with that folder beside it:\n"
        f"python3 -m pip install --no-index --no-deps --target site {wheels}\n"
        "PYTHONPATH=site python3 -m nanogpt_cli bench gpu --out gpu.json\n"
    )


if __name__ == "__main__":
    main()
