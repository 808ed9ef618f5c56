"""What ``pack.py`` packs, with PyTorch and NumPy, is enough for ``nanogpt bench gpu``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pack
import pytest
from programs import LIMIT

# Refuses to import any library that is not listed, as if it were not installed.
REFUSING = """
import os, sys
class Refusing:
    allowed = set(os.environ["ALLOWED"].split())
    known = set(os.environ["KNOWN"].split())
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in self.known - self.allowed:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Refusing())
"""


def with_needs(names: list[str]) -> set[str]:
    """Distributions and all that they require, without extras."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system or version of Python
        found.add(name)
        names += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed
                  if "extra ==" not in line]  # fmt: skip
    return found


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a Python that has what is packed, PyTorch and NumPy."""
    (tmp_path / "sitecustomize.py").write_text(REFUSING)
    there = with_needs([*pack.NEEDED, "torch", "numpy"]) | {"nanogpt-cli"}
    modules = metadata.packages_distributions()
    allowed = {
        module for module, owners in modules.items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in there for owner in owners)
    }  # fmt: skip
    assert "textual" in modules.keys() - allowed
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path, "ALLOWED": " ".join(allowed), "KNOWN": " ".join(modules),
    }  # fmt: skip


COMMANDS = """
import json, sys
from nanogpt_cli.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["nanogpt", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def test_a_run_and_the_items_do_without_the_rest(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a text of a few letters, again and again\n" * 60)
    sets = [f"data.name={tmp_path / 'text.txt'}", "train.max_steps=2", 'sample.prompt="a"',
            "optim.warmup_steps=1"]  # fmt: skip
    words = [word for setting in sets for word in ("--set", setting)]
    run, out = str(tmp_path / "debug"), tmp_path / "gpu.json"
    commands = [
        ["train", "debug", *words, "--out", str(tmp_path)],
        ["sample", run, "-n", "5", "--json"],
        ["eval", run, "--json"],
        ["bench", "gpu", "--device", "cpu", "--only", "decoding", "--out", str(out)],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["passed"]


def test_versions_are_those_of_the_project() -> None:
    found = pack.requirements(tests=True)
    assert len(found) == len(pack.NEEDED) + len(pack.TESTING)
    assert any(line.startswith("typer>=") for line in found)
