"""nanoGPT's config files become recipes without being run."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop.nanogpt_config import read
from nanogpt_cli.interop.nanogpt_recipe import convert
from nanogpt_cli.recipe import files as recipe_files

# The settings of nanoGPT's character-level Shakespeare example, in our own words.
CHARACTERS = """
out_dir = 'out-characters'
dataset = 'shakespeare_char'
always_save_checkpoint = False
eval_interval, eval_iters = 250, 200
gradient_accumulation_steps = 1
batch_size = 8 * 8
eval_interval = 250
block_size = 2**8
n_layer = n_head = 6
n_embd = n_head * 64
dropout = 0.2
learning_rate = 1e-3
max_iters = 5_000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
warmup_iters = 100
"""


def config(folder: Path, text: str) -> Path:
    path = folder / "config.py"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def test_the_character_example_has_our_recipes_shape_and_its_own_settings(tmp_path: Path) -> None:
    made = convert(read(config(tmp_path, CHARACTERS)))
    values = dict(made.values)
    assert values.pop("model.dropout") == 0.2
    ours = recipe_files.load("shakespeare-char").recipe.model_dump()
    shared = {key: value for key, value in values.items() if key.split(".")[0] in ("data", "model")}
    for key, value in (shared | {"train.batch_size": values["train.batch_size"]}).items():
        section, name = key.split(".")
        assert value == ours[section][name], key
    assert {"model.n_embd", "data.tokenizer"} <= set(shared)
    expected = {
        "train.max_steps": 5000,
        "train.eval_every": 250,
        "optim.lr": 1e-3,
        "optim.min_lr": 1e-4,
        "optim.warmup_steps": 100,
        "optim.betas": [0.9, 0.99],
    }
    assert {key: values[key] for key in expected} == expected
    assert any(note.startswith("line 5: not a plain assignment") for note in made.notes)
    assert any("out_dir has no equivalent" in note for note in made.notes)


def test_an_empty_file_is_gpt2_on_web_text(tmp_path: Path) -> None:
    found = convert(read(config(tmp_path, ""))).recipe()
    ours = recipe_files.load("gpt2-124m-nanogpt").recipe
    for section in ("data", "model", "optim"):
        assert getattr(found, section) == getattr(ours, section)
    assert found.train.tokens_per_step == ours.train.tokens_per_step
    assert found.train.max_steps == ours.train.max_steps


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = (
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        f"batch_size = len(str(pathlib.Path({str(ran)!r}).touch()))\n"
        "n_layer = 9 ** 9 ** 9 ** 9\nmax_iters = 'a' * 10 ** 12\nn_head = 1 // 0\n"
        "for x in range(3):\n    n_layer = 3\n"
        "block_size: int = 64\nwarmup_iters = -1 ** 2 + 2\n"
    )
    found = read(config(tmp_path, text))
    assert not ran.exists()
    assert set(found.origins) == {"block_size", "warmup_iters"}
    assert found.values["warmup_iters"] == 1
    notes = "\n".join(found.notes)
    for expected in (
        "line 2: not a plain assignment", "line 3: batch_size cannot be known without running",
        "line 4: n_layer cannot be known", "line 5: max_iters", "line 6: n_head", "line 7: not a",
    ):  # fmt: skip
        assert expected in notes


def test_pretrained_weights_bring_their_shape_and_a_flag_of_train(tmp_path: Path) -> None:
    text = "init_from = 'gpt2-xl'\ndataset = 'shakespeare'\ndecay_lr = False\nblock_size = 64\n"
    made = convert(read(config(tmp_path, text)))
    found = made.recipe()
    assert (found.model.n_layer, found.model.n_head, found.model.n_embd) == (48, 25, 1600)
    assert (found.model.bias, found.model.vocab_size, found.model.block_size) == (True, 50257, 1024)
    assert (found.optim.schedule, found.optim.warmup_steps) == ("constant", 0)
    assert made.source == "gpt2-xl"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("max_iters = 100", "warmup_iters = 2000 is longer than max_iters = 100"),
        ("learning_rate = 1e-5", "min_lr = 6e-05 is above learning_rate = 1e-05"),
        ("lr_decay_iters = 5", "lr_decay_iters = 5 has no equivalent"),
        ("dataset = 'mine'", "data.name is set to the folder data/mine"),
        ("init_from = 'resume'", "train --resume"),
        ("init_from = 'bert'", "init_from = 'bert' is not known"),
        ("eval_only = True", "nanogpt eval"),
        ("colour = 3", "line 1: colour is not a setting of nanoGPT's train.py"),
        ("dtype = 'int8'", "dtype = 'int8' is not known"),
    ],
)
def test_what_has_no_equivalent_is_said(tmp_path: Path, text: str, note: str) -> None:
    made = convert(read(config(tmp_path, text)))
    made.recipe()
    assert any(note in line for line in made.notes), made.notes


def test_machine_settings(tmp_path: Path) -> None:
    text = "device = 'cpu'\ncompile = False\ndtype = 'float32'\nwandb_log = True\n"
    found = convert(read(config(tmp_path, text))).recipe()
    assert (found.train.device, found.train.compile, found.train.precision) == (
        "cpu",
        False,
        "fp32",
    )
    assert found.log.sinks == ["wandb"]
    flags = ["--device=cuda:1"]
    assert convert(read(config(tmp_path, text), flags)).recipe().train.precision == "tf32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_layer = = 3", "not Python source: line 1"),
        ("n_layer = 'six'", "line 1: n_layer = 'six' should be of type int"),
        ("bias = 1", "bias = 1 should be of type bool"),
        ("x = " + "(" * 5000 + ")" * 5000, "not Python source"),
        ("n_head = 5", "does not divide"),
        ("n_head = 6 # caf\udce9", "is not UTF-8 text (byte 16)"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        convert(read(config(tmp_path, text))).recipe()
    assert said in str(caught.value)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["recipe", "from-nanogpt", *arguments])
    if isinstance(result.exception, UserError):
        return 2, "", str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_recipe_that_holds(tmp_path: Path) -> None:
    path = config(tmp_path, CHARACTERS)
    code, out, said = run(str(path), "--max_iters=7", "--lr_decay_iters=7", "--warmup_iters=2")
    assert code == 0
    assert tomllib.loads(out)["train"]["max_steps"] == 7
    assert "max_steps = 7  # max_iters, --max_iters" in out
    assert said.endswith("--max_iters=7 --lr_decay_iters=7 --warmup_iters=2 --out config.toml\n")
    target = tmp_path / "mine.toml"
    code, out, _ = run(str(path), "--out", str(target), "--json")
    assert json.loads(out)["file"] == str(target)
    assert recipe_files.load(target).recipe.run.name == "mine"
    assert "exists already" in run(str(path), "--out", str(target))[2]


def test_flags_that_are_not_nanogpts(tmp_path: Path) -> None:
    path = str(config(tmp_path, ""))
    assert "did you mean --batch_size=…?" in run(path, "--batchsize=3")[2]
    assert "written --key=value" in run(path, "--compile")[2]
    assert "none.py: No such file" in run(str(tmp_path / "none.py"))[2]
