"""The lint of weights on models with today's parts: silent on clean ones, and it names faults."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nanogpt_cli import schemes
from nanogpt_cli.cli import app
from nanogpt_cli.init import lint
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.modules.inspection import judge_weights

QWEN3: dict[str, Any] = {
    "n_layer": 6, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 512, "dropout": 0.0,
    "bias": False, "activation": "swiglu", "norm": "rms", "position": "rope", "qk_norm": True,
    "n_kv_head": 2, "hidden": 384,
}  # fmt: skip
HEAD = 32
DEPTH = math.sqrt(12)  # what projections into the residual stream are divided by


def alarms(model: nn.Module) -> list[str]:
    verdicts, trained = judge_weights(model)
    assert not trained
    return [f"{v.topic}: {v.text}" for v in verdicts if v.severity in (lint.WARN, lint.FAIL)]


def clean(number: int, rng: random.Random) -> tuple[str, GPT]:
    """A model of random parts and shape under the ``number``-th scheme, and the scheme's name."""
    name = schemes.names()[number % len(schemes.names())]
    heads, size = rng.choice((2, 3, 4, 6, 8)), rng.choice((16, 32))
    width = max(64, heads * size)
    if width % heads:
        heads, width = 4, 64
    config = GPTConfig(
        n_layer=rng.choice((2, 3, 4, 6)), n_head=heads, n_embd=width,
        block_size=rng.choice((32, 64)), vocab_size=rng.choice((65, 256, 1000)), dropout=0.0,
        bias=rng.choice((False, True, "qkv")), norm=rng.choice(("rms", "layer")), position="rope",
        activation=rng.choice(("swiglu", "geglu", "gelu", "relu2")),
        qk_norm=rng.random() < 0.5, tied=rng.random() < 0.6,
        n_kv_head=rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        hidden=rng.choice((0, 2 * width, 3 * width)),
    )  # fmt: skip
    scheme = schemes.get(name)
    return name, build(configure(config, scheme), scheme, rng.randrange(10**6))


def check_clean(first: int, count: int) -> None:
    rng = random.Random(first)
    for number in range(first, first + count):
        name, model = clean(number, rng)
        found = alarms(model)
        if name == "xavier-fused":  # a mistake by its own description
            assert [text.partition(":")[0] for text in found] == ["fused-xavier"], model.config
        else:
            assert not found, (name, model.config, found)


@pytest.mark.numeric
def test_no_alarm_on_clean_models() -> None:
    check_clean(0, len(schemes.names()))


@pytest.mark.slow
def test_no_alarm_on_many_clean_models() -> None:
    check_clean(1000, 200)


Fault = Callable[[GPT], Any]


def each(path: str, change: Callable[[Any], Any]) -> Fault:
    return lambda m: [change(block.get_submodule(path)) for block in m.blocks]


def one(layer: int, path: str, change: Callable[[Any], Any]) -> Fault:
    return lambda m: change(m.blocks[layer].get_submodule(path))


def pair(change: Callable[[Any, Any], Any], first: str, second: str) -> Fault:
    return lambda m: [change(b.get_submodule(first), b.get_submodule(second)) for b in m.blocks]


def copy_head(linear: nn.Linear) -> None:
    linear.weight[HEAD:] = linear.weight[:HEAD]


ATTN, MLP = "self_attn.", "mlp."
PLANTED: dict[str, tuple[Fault, str, dict[str, Any]]] = {
    "a q_norm × 8": (one(3, ATTN + "q_norm", lambda n: n.weight.mul_(8)),
                     r"^gain.*3\.self_attn\.q_norm.*8 throughout", {}),
    "all q_norms × 8": (each(ATTN + "q_norm", lambda n: n.weight.mul_(8)),
                        r"^gain.*q_norm.*8 throughout.*blocks 0-5", {}),
    "a k_norm of zero": (one(2, ATTN + "k_norm", lambda n: n.weight.zero_()),
                         r"^gain.*2\.self_attn\.k_norm.*zero, but others", {}),
    "gains of zero, for a norm of 1 + gain": (
        lambda m: [p.zero_() for name, p in m.named_parameters() if "norm.weight" in name],
        r"^gain.*zero.*nothing passes", {}),
    "a gain × 30": (one(4, "input_layernorm", lambda n: n.weight.mul_(30)),
                    r"^gain.*4\.input_layernorm.*30 throughout", {}),
    "gains drawn": (each("post_attention_layernorm", lambda n: n.weight.normal_(0, 0.02)),
                    r"^gain-drawn.*post_attention", {}),
    "a NaN in a gain": (one(1, ATTN + "q_norm", lambda n: n.weight[3:4].fill_(math.nan)),
                        r"^not-finite.*1\.self_attn\.q_norm", {}),
    "a key head copied": (one(2, ATTN + "k_proj", copy_head),
                          r"^copied-lines.*2\.self_attn\.k_proj.*32 of 64 rows", {}),
    "a key head of zeros": (one(2, ATTN + "k_proj", lambda n: n.weight[:HEAD].zero_()),
                            r"^zero-lines.*2\.self_attn\.k_proj.*rows are zero \(0-31\)", {}),
    "an up_proj of zeros": (one(1, MLP + "up_proj", lambda n: n.weight.zero_()),
                            r"^zero: block 1.*up_proj", {}),
    "gate = up": (pair(lambda a, b: a.weight.copy_(b.weight), MLP + "gate_proj", MLP + "up_proj"),
                  r"gate_proj.*up_proj.*are equal", {}),
    "gate × 0.01": (each(MLP + "gate_proj", lambda n: n.weight.mul_(0.01)), r"^law: gate", {}),
    "a down_proj × 30": (one(2, MLP + "down_proj", lambda n: n.weight.mul_(30)),
                         r"^odd-block.*block 2 is (29|30)", {}),
    "down_proj unscaled": (each(MLP + "down_proj", lambda n: n.weight.mul_(DEPTH)),
                           r"^half-scaled: mlp_proj.*plain std", {}),
    "o_proj unscaled": (each(ATTN + "o_proj", lambda n: n.weight.mul_(DEPTH)),
                        r"^half-scaled: attn_proj.*plain std", {}),
    "o_proj scaled twice": (each(ATTN + "o_proj", lambda n: n.weight.div_(DEPTH)),
                            r"^depth-factor: attn_proj.*applied twice", {}),
    "k_proj by its fan-out": (each(ATTN + "k_proj", lambda n: n.weight.mul_(8.84)),
                              r"^fan: k.*√\(2/fan_out\)", {}),
    "k = the first rows of q": (
        pair(lambda q, k: k.weight.copy_(q.weight[:64]), ATTN + "q_proj", ATTN + "k_proj"),
        r"^qkv-copies.*q_proj.*k_proj.*equal", {}),
    "v = k": (pair(lambda k, v: v.weight.copy_(k.weight), ATTN + "k_proj", ATTN + "v_proj"),
              r"^qkv-copies.*k_proj.*v_proj.*equal", {}),
    "one block from another": (lambda m: m.blocks[4].load_state_dict(m.blocks[1].state_dict()),
                               r"^block-copies: blocks 1, 4 are equal", {}),
    "up_proj at torch's default": (
        each(MLP + "up_proj", lambda n: nn.init.kaiming_uniform_(n.weight, a=math.sqrt(5))),
        r"^torch-default: fc.*nn\.Linear", {}),
    "an embedding of std 1": (lambda m: m.token_table.weight.div_(0.02),
                              r"^torch-default: wte.*nn\.Embedding", {}),
    "an untied head of std 1": (lambda m: m.lm_head.weight.div_(0.02),
                                r"^torch-default: lm_head", {"tied": False}),
    "a head copied from the table": (lambda m: m.lm_head.weight.copy_(m.token_table.weight),
                                     r"^untied-copy", {"tied": False}),
    "gates shut by a bias": (each(MLP + "gate_proj", lambda n: n.bias.fill_(-8)),
                             r"^bias.*gate_proj\.bias.*-8 throughout", {"bias": True}),
    "a bias of values drawn": (each(ATTN + "v_proj", lambda n: n.bias.normal_(0, 0.5)),
                               r"bias.*v_proj\.bias|v_proj\.bias.*bias", {"bias": "qkv"}),
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_named(name: str) -> None:
    plant, pattern, changes = PLANTED[name]
    scheme = schemes.get("gpt2")
    model = build(configure(GPTConfig(**QWEN3 | changes), scheme), scheme, 3)
    with torch.no_grad():
        plant(model)
    found = alarms(model)
    assert any(re.search(pattern, text) for text in found), found


def test_a_head_of_zeros_is_no_copy_and_no_int8() -> None:
    scheme = schemes.get("gpt2")
    model = build(configure(GPTConfig(**QWEN3), scheme), scheme, 3)
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):
            model.blocks[2].get_submodule("self_attn." + name).weight[:HEAD].zero_()  # type: ignore[index,operator]
    assert {text.partition(":")[0] for text in alarms(model)} == {"zero-lines"}


@pytest.mark.parametrize(
    ("change", "named"),
    [("rope_theta=10", "rope-period"), ("norm_eps=0.1", "norm-epsilon"), ("rope_theta=1e4", "")],
)
@pytest.mark.parametrize("theory", [True, False])
def test_settings_without_trace_in_the_weights_are_judged(
    change: str, named: str, theory: bool
) -> None:
    how = ["--theory"] if theory else ["--no-gradients"]
    words = ["modern", "--set", f"model.{change}", "--input", "random", "--tokens", "16", "--json"]
    done = CliRunner().invoke(app, ["init-inspect", *words, *how])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])["verdicts"]
    new = {v["topic"] for v in found} & {"rope-period", "norm-epsilon"}
    assert new == ({named} if named else set())
