"""How the sequences of a step fall to several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe, files, shares

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.toml"))
# It takes the weights of GPT-2, whose vocabulary that is.
GIVEN_VOCABULARY = "shakespeare-bpe-finetune"


def recipe(batch_size: int, sequences: int) -> Recipe:
    return files.from_values(
        {
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16},
            "train": {"batch_size": batch_size, "tokens_per_step": 16 * sequences},
        }
    )


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_waste_nothing_on_so_many_gpus(name: str, processes: int) -> None:
    found = files.load(name).recipe
    shares.check(found, processes)
    vocab_size = 0 if name == GIVEN_VOCABULARY else found.model.vocab_size
    assert shares.notes(found, processes, vocab_size=vocab_size, cuda=True) == []


@pytest.mark.parametrize(
    ("batch_size", "sequences", "processes", "step"),
    [(4, 8, 3, 192), (1, 1, 8, 128), (4, 4, 3, 192)],
)
def test_a_step_that_cannot_be_divided_is_refused_with_one_that_can(
    batch_size: int, sequences: int, processes: int, step: int
) -> None:
    uneven = recipe(batch_size, sequences)
    with pytest.raises(UserError, match="cannot be divided evenly") as caught:
        shares.check(uneven, processes)
    assert caught.value.hint == f"set train.tokens_per_step = {step}"
    shares.check(recipe(batch_size, step // 16), processes)


@pytest.mark.parametrize(
    ("batch_size", "sequences", "processes", "advice"),
    [(8, 480, 8, "train.batch_size = 6"), (8, 88, 8, "train.tokens_per_step = 2048")],
)
def test_a_ragged_share_is_noted_with_a_value_that_mends_it(
    batch_size: int, sequences: int, processes: int, advice: str
) -> None:
    (found,) = shares.notes(recipe(batch_size, sequences), processes, vocab_size=0, cuda=False)
    assert found.endswith(f"set {advice}")
    key, _, value = advice.partition(" = ")
    mended = recipe(
        int(value) if key == "train.batch_size" else batch_size,
        sequences if key == "train.batch_size" else int(value) // 16,
    )
    assert shares.notes(mended, processes, vocab_size=0, cuda=False) == []


def test_a_share_below_one_micro_batch_is_one_smaller_micro_batch() -> None:
    assert shares.notes(recipe(12, 12), 4, vocab_size=0, cuda=False) == []


@pytest.mark.parametrize(
    ("vocab_size", "cuda", "noted"),
    [(50257, True, True), (50304, True, False), (50257, False, False), (65, True, False)],
)
def test_a_large_vocabulary_should_fit_the_tiles_of_a_gpu(
    vocab_size: int, cuda: bool, noted: bool
) -> None:
    found = shares.notes(recipe(4, 8), 1, vocab_size=vocab_size, cuda=cuda)
    assert len(found) == noted
    assert all("model.vocab_size = 50304" in note for note in found)


def test_check_and_plan_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text("the king walked under the trees\n" * 500)
    sets = ["--set", "data.name=toy.txt", "--set", "data.tokenizer=char"]
    sets += ["--set", "train.tokens_per_step=3072", "--set", "train.device=cpu"]  # 96 sequences
    for command in ("recipe check debug", "plan debug --flops 1e9"):
        done = CliRunner().invoke(app, [*command.split(), *sets, "--procs", "8"])
        assert done.exit_code == 0, done.output
        assert "does not divide the 12 sequences of each of 8 processes" in done.stderr
        assert "set train.batch_size = 6" in done.stderr
        assert "train debug" in done.stderr
        assert "--procs 8" in done.stderr
