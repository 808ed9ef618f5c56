"""The public Python API: small, typed, lazy, and what a program needs to train and sample."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT

import nanogpt_cli as ng
from nanogpt_cli import api
from nanogpt_cli.run.folder import find_run

TINY = ["train.max_steps=4", "train.eval_every=2", "model.block_size=8", "optim.warmup_steps=1"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ng.Recipe:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a text of a few letters, again and again\n" * 60)
    return ng.load_recipe("debug", [*TINY, "data.name=text.txt"])


def test_the_package_offers_what_the_api_lists_and_imports_it_late() -> None:
    assert ng._API == set(api.__all__) <= set(dir(ng))
    code = (
        "import sys, nanogpt_cli\nfrom nanogpt_cli import places\n"
        "print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'treno'"):
        ng.treno  # noqa: B018


def test_every_function_is_documented_and_typed() -> None:
    for name in api.__all__:
        value = getattr(ng, name)
        assert value.__doc__, name
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty


def test_train_in_memory_makes_the_events_of_a_run(recipe: ng.Recipe, tmp_path: Path) -> None:
    in_memory = list(ng.train(recipe))
    written = list(ng.train(recipe, out=tmp_path / "runs"))
    losses = [[e.loss for e in found if e.type == "step"] for found in (in_memory, written)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert in_memory[-1].type == written[-1].type == "run_ended"
    assert find_run("debug", tmp_path / "runs").recipe.is_file()


def test_leaving_the_loop_and_stopping_end_a_run(recipe: ng.Recipe, tmp_path: Path) -> None:
    for event in ng.train(recipe):
        if event.type == "step":
            break
    ended = list(ng.train(recipe, out=tmp_path / "runs", should_stop=lambda: True))[-1]
    assert ended.type == "run_ended"
    assert ended.reason == "stopped"


def test_a_trained_model_writes_the_same_text_for_a_seed(recipe: ng.Recipe) -> None:
    list(ng.train(recipe, out="runs"))
    model = ng.load_model()
    texts = ["".join(ng.sample(model, "a", max_new_tokens=12, seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 12
    greedy = ng.Sampling(temperature=0)
    assert len({"".join(ng.sample(model, "a", seed=s, sampling=greedy)) for s in (1, 2)}) == 1
    with pytest.raises(ng.UserError, match="Ω"):
        next(ng.sample(model, "Ω"))


def test_inspect_says_what_is_wrong_with_a_module(recipe: ng.Recipe) -> None:
    import torch

    list(ng.train(recipe, out="runs"))
    module = ng.load_model("debug").model
    report = ng.inspect(module)
    assert report.scheme == ""  # trained weights follow none
    assert "these weights are trained" in report.verdicts[0].text
    assert len(report.measured.signals.stream_rms) == 3
    module.transformer.h[1].attn.c_attn.weight.data[0, 0] = float("nan")
    assert any(verdict.severity == "fail" for verdict in ng.inspect(module).verdicts)
    with pytest.raises(ng.UserError, match="Linear: neither a configuration nor"):
        ng.inspect(torch.nn.Linear(3, 3))
    with pytest.raises(ng.UserError, match="on the device meta"):
        ng.inspect(torch.nn.Embedding(5, 5, device="meta"))


def test_inspect_takes_modules_of_other_architectures() -> None:
    import torch
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(intermediate_size=128, **sizes)
    module = transformers.LlamaForCausalLM(config)
    report = ng.inspect(module, batch=1, length=16)
    assert module.training
    assert report.scheme == "normal"
    assert report.expected is not None
    assert not [v for v in report.verdicts if v.severity in ("warn", "fail")]
    module.model.layers[1].mlp.act_fn = torch.nn.Tanh()
    assert any(v.topic == "forward" for v in ng.inspect(module, batch=1, length=16).verdicts)
