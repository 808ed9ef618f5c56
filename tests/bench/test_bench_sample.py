"""``nanogpt bench sample``: the table, the JSON line, and rivals on the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nanogpt_cli.bench import rivals
from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.sampling.sampler import GenerationConfig, generate
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer
from nanogpt_cli.training.checkpoints import checkpoint


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(2, 2, 16, 32, 256, 0.0, False, "gelu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() == 2 else 1)
    return model.eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: GPT) -> Path:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "small")
    run.path.mkdir(parents=True)
    run.recipe.write_text("")
    checkpoint.save(run, model, {"step": 1}, tokenizer=ByteTokenizer().to_json())
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("bench", "sample", "--prompt-tokens", "3", "--repeats", "1"),
        ("sample", "--bench", "--prompt", "abc", "-n", "29"),
    ],
)
def test_json_is_all_there_is_and_has_the_naive_path_beside(
    here: Path, command: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(app, [*command, "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["prompt_tokens"], facts["new_tokens"], facts["threads"]) == (3, 29, 1)
    ratio = facts["cached"]["tokens_per_s"] / facts["naive"]["tokens_per_s"]
    assert facts["speedup"] == pytest.approx(ratio)


def test_the_table_has_every_rate_and_memory(here: Path) -> None:
    result = CliRunner().invoke(app, ["sample", "--bench", "-n", "5", "--threads", "1"])
    assert result.exit_code == 0, result.output
    for words in ("first token", "cached", "naive", "peak memory"):
        assert words in result.stdout


def test_a_prompt_that_fills_the_context_is_refused(here: Path) -> None:
    error = CliRunner().invoke(app, ["bench", "sample", "--prompt-tokens", "32"]).exception
    assert isinstance(error, UserError)
    assert "no room" in error.message


@pytest.mark.parametrize("qk_norm", [None, False, True], ids=["gpt2", "llama", "qwen3"])
def test_transformers_runs_on_the_same_weights(model: GPT, qk_norm: bool | None) -> None:
    if qk_norm is not None:
        parts: dict[str, Any] = {
            "norm": "rms",
            "position": "rope",
            "activation": "swiglu",
            "bias": False,
        }
        model = GPT(replace(model.config, **parts, qk_norm=qk_norm, n_kv_head=1)).eval()
    greedy = Sampling(temperature=0)
    ours = [token.id for token in generate(model, [[1, 2]], GenerationConfig(10, sampling=greedy))]
    # One token to choose from is greedy in any sampler.
    theirs = rivals.huggingface_transformers(model, Sampling(temperature=1.0, top_k=1))
    assert theirs([1, 2], 10)[0].tolist() == [1, 2, *ours]  # type: ignore[index]


def test_a_checkout_is_run_on_the_same_weights(model: GPT, tmp_path: Path) -> None:
    """A stand-in with nanoGPT's interface: what it is given is what our model has."""
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "class GPTConfig:\n"
        "    def __init__(self, **values): self.__dict__.update(values)\n"
        "class GPT(torch.nn.Module):\n"
        "    def __init__(self, config): super().__init__(); self.config = config\n"
        "    def load_state_dict(self, state): self.state = dict(state)\n"
        "    def generate(self, idx, new, temperature, top_k):\n"
        "        return self.config.n_embd, self.state, idx.tolist(), new, temperature, top_k\n"
    )
    run = rivals.nanogpt(tmp_path, model, Sampling(temperature=0.5, top_k=0))
    size, state, idx, new, temperature, top_k = run([4, 5], 6)  # type: ignore[misc]
    assert (size, idx, new, temperature, top_k) == (16, [[4, 5]], 6, 0.5, None)
    assert torch.equal(state["transformer.wte.weight"], model.transformer.wte.weight)
    with pytest.raises(UserError, match=r"not nanoGPT's model\.py"):
        rivals.nanogpt(tmp_path / "nosuch", model, Sampling())
