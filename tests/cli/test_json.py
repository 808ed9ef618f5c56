"""Every command's ``--json`` is one line with the documented keys, its last line a next command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nanogpt_cli import places
from nanogpt_cli.cli import app, lazy, shapes

TINY = ["--set", "data.name=data/tiny-char", "--set", "train.eval_every=2",
        "--set", "train.max_steps=4", "--set", "train.checkpoint_every=2",
        "--set", "optim.warmup_steps=1", "--set", "model.block_size=16"]  # fmt: skip

ARGUMENTS = {
    "prepare": ["text.txt", "--tokenizer", "char", "--out", "data/again"],
    "train": ["debug", *TINY],
    "train --certify": ["debug", *TINY],
    "train --lr-find": ["debug", *TINY],
    "watch": ["debug"],
    "sample": ["debug", "--prompt", "a", "-n", "5"],
    "eval": ["--run", "runs/debug"],
    "eval --certify": ["--run", "runs/debug"],
    "init-inspect": ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--vocab-size", "20",
                     "--block-size", "16"],
    "init-inspect --from": ["theirs.py:Model", "--tokens", "8"],
    "init-inspect --compare": ["--compare=normal", "--n-layer", "1", "--n-embd", "16",
                               "--n-head", "2", "--vocab-size", "20", "--block-size", "16"],
    "init-inspect --coord-check": ["--n-layer", "1", "--widths", "16,32", "--n-embd", "16",
                                   "--n-head", "2", "--vocab-size", "20", "--block-size", "16"],
    "init-inspect --warmup": ["--n-layer", "1", "--n-embd", "16", "--n-head", "2",
                              "--vocab-size", "20", "--block-size", "16"],
    "explain growth": ["--n-layer", "2", "--n-embd", "64"],
    "explain init": ["--n-layer", "2", "--n-embd", "64"],
    "runs note": ["debug", "first try"],
    "runs tag": ["debug", "+baseline"],
    "runs diff": ["debug", "debug"],
    "runs plot": ["debug"],
    "why": ["debug", "3", "--budget", "20s"],
    "replay": ["debug", "3"],
    "export": ["debug", "--to", "nanogpt", "--no-verify", "--out", "exported"],
    "import": ["away/hf", "--name", "back"],
    "recipe show": ["small"],
    "recipe check": ["small"],
    "recipe diff": ["small", "debug"],
    "recipe new": ["own", "--data", "text.txt"],
    "recipe from-nanogpt": ["config.py"],
    "plan": ["debug", *TINY, "--flops", "1e9", "--memory", "8"],
    "data inspect": ["data/tiny-char"],
    "verify-resume": ["debug", *TINY, "--steps", "2"],
    "bench sample": ["debug", "-n", "2", "--repeats", "1", "--threads", "1"],
    "doctor": ["--no-compile"],
    "cache clear": ["--yes"],
}  # fmt: skip
# A decoder of another architecture than GPT-2's: nothing but an MLP for each token.
THEIRS = """
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 8)
        pieces = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)]
        self.blocks = nn.ModuleList(pieces)
        self.head = nn.Linear(8, 9)

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)
"""
# They take long: their own tests look at what they print, or it is checked by eye.
SLOW = {
    "bench race",
    "bench train",
    "bench train --growth",
    "bench startup",
    "bench prepare",
    "bench inspect",
    "bench tui",
    "bench gpu",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its tokens, and a run of four steps."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NANOGPT_HOME", str(folder / "home"))
        Path("text.txt").write_text("a text of a few letters, again and again\n" * 60)
        Path("config.py").write_text("n_layer = 2\n")
        Path("theirs.py").write_text(THEIRS)
        make = ["prepare", "text.txt", "--tokenizer", "char", "--out", "data/tiny-char"]
        away = ["export", "debug", "--to", "hf", "--no-verify", "--out", "away"]
        for arguments in (make, ["train", "debug", *TINY], away):
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
    return folder


def test_the_page_is_made_of_the_table() -> None:
    assert (places.docs_folder() / "json.md").read_text(encoding="utf-8") == shapes.markdown()


@pytest.mark.parametrize("name", sorted(set(shapes.SHAPES) - SLOW))
def test_json_has_the_documented_keys(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("nanogpt_cli.machine.capabilities._SECONDS", 0.01)
    monkeypatch.setattr(
        "nanogpt_cli.machine.capabilities._SIDE", {"cpu": 64, "cuda": 64, "mps": 64}
    )
    words = [word for word in name.split() if word != "--compare"]
    done = CliRunner().invoke(app, [*words, *ARGUMENTS.get(name, []), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    found = set(json.loads(lines[0]))
    assert found == set(shapes.SHAPES[name]), "say in cli/shapes.py what these keys mean"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("next: ")
    check(last.removeprefix("next: "))


def check(line: str) -> None:
    """What is proposed exists, with these options."""
    if not line.startswith("nanogpt "):
        return  # another program's command, as for some exports
    words = shlex.split(line)
    command: Any = lazy.load(words[1])
    rest = words[2:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(command.name, rest)


def test_every_command_is_documented() -> None:
    from test_language import ALL, FORMATS

    documented = {n.split(" --")[0] for n in shapes.SHAPES} - {"explain init", "explain growth"}
    assert {name for name, _ in ALL} - FORMATS == documented  # those two: pages of either kind
