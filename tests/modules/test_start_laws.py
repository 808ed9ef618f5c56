"""Laws read off by drawing twice, and what is found wrong with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from survey import LAYERS, look, small_config
from torch import nn

from nanogpt_cli.modules.starts.build import build
from nanogpt_cli.modules.starts.laws import (
    ParameterLaw,
    config_doubled,
    depth_factors,
    read_laws,
    read_streamed_laws,
)
from nanogpt_cli.modules.starts.laws_lint import findings

transformers = pytest.importorskip("transformers", minversion="5.0")


class Base(nn.Module):
    """Three blocks of two maps, an embedding and a head, drawn in the way of nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        self.h = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(32, 64), "proj": nn.Linear(64, 32)}) for _ in range(3)
        )
        self.prepare()
        self.apply(self._init_weights)
        self.finish()

    def prepare(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def scale(self, ending: str, factor: float) -> None:
        for name, p in self.named_parameters():
            if name.endswith(ending):
                nn.init.normal_(p, std=0.02 * factor)


def at(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return kind()

    return build


def laws_of(kind: Callable[[], nn.Module]) -> dict[str, ParameterLaw]:
    return {law.name: law for law in read_laws(at(kind))}


def topics(kind: Callable[[], nn.Module]) -> dict[str, str]:
    """Topic -> the first text, without the notes on depth factors."""
    return {v.topic: v.text for v in reversed(findings(read_laws(at(kind))))}


def test_a_clean_start_has_no_findings() -> None:
    assert not topics(Base)
    laws = laws_of(Base)
    assert {law.kind for n, law in laws.items() if n.endswith("weight")} == {"random"}
    assert {law.law for n, law in laws.items() if n.endswith("bias")} == {"0"}
    assert "_init_weights" in laws["wte.weight"].draws[-1].where


def test_plain_layers_have_their_own_law() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

    laws = laws_of(Plain)
    assert laws["linear.weight"].law.startswith("uniform(")
    assert laws["linear.weight"].std == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert laws["norm.weight"].law == "1"
    assert not topics(Plain)  # nobody promised another law


@pytest.mark.numeric
def test_laws_are_told_apart() -> None:
    class Laws(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def new() -> nn.Parameter:
                return nn.Parameter(torch.empty(96, 96))

            self.normal, self.uniform, self.truncated = new(), new(), new()
            self.orthogonal, self.constant, self.computed = new(), new(), new()
            nn.init.normal_(self.normal, std=0.5)
            nn.init.uniform_(self.uniform, -1, 1)
            nn.init.trunc_normal_(self.truncated, std=0.1, a=-0.2, b=0.2)
            nn.init.orthogonal_(self.orthogonal)
            nn.init.constant_(self.constant, 0.3)
            with torch.no_grad():
                self.computed.copy_(torch.arange(96.0).expand(96, 96))

    laws = laws_of(Laws)
    for name in ("normal", "uniform", "truncated", "orthogonal"):
        assert laws[name].law.startswith(f"{name}("), laws[name]
        assert [w.kind for w in laws[name].draws] == [name]
    assert laws["constant"].kind == "constant"
    assert laws["computed"].kind == "computed"
    assert laws["normal"].std == pytest.approx(0.5, rel=6 / math.sqrt(2 * 96 * 96))
    assert not topics(Laws)


def test_memory_that_nothing_writes_is_found() -> None:
    class Forgotten(Base):
        def prepare(self) -> None:
            self.gain = nn.Parameter(torch.empty(32))
            self.table = nn.Parameter(torch.empty(4, 8))
            nn.init.normal_(self.table[1:])  # all but the first row

    found = [v for v in findings(read_laws(at(Forgotten))) if v.topic == "never-initialised"]
    assert [v.text.split(":")[0] for v in found] == ["gain", "table"]
    assert {v.severity for v in found} == {"fail"}


def test_a_layer_that_the_initialiser_leaves_out_is_found() -> None:
    class Left(Base):
        def prepare(self) -> None:
            self.conv = nn.Conv1d(8, 8, 3)

    found = topics(Left)
    assert found.keys() == {"constructor-default"}
    assert found["constructor-default"].startswith("conv.weight: _init_weights leaves it out")


def test_a_second_draw_is_reported_with_the_first() -> None:
    class Twice(Base):
        def finish(self) -> None:
            self.scale("proj.weight", 1 / math.sqrt(6))

    found = topics(Twice)
    assert found.keys() == {"doubly-initialised", "depth-factor"}
    text = found["doubly-initialised"]
    assert text.startswith("h.*.proj.weight (3): drawn as normal(0, 0.02) in test_start_laws.py")
    assert "normal(0, 0.008165) in test_start_laws.py:scale, which stays" in text
    assert found["depth-factor"] == "h.*.proj.weight: std has the depth factor 1/√(2L)"


def test_a_tied_table_that_is_drawn_by_two_laws_is_found() -> None:
    class Tied(Base):
        std = 1.0

        def prepare(self) -> None:
            self.head.weight = self.wte.weight

        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.std)

    class Same(Tied):
        std = 0.02

    text = topics(Tied)["overwritten-after-tying"]
    assert "tied to head.weight before it is drawn, as normal(0, 1)" in text
    assert "then as normal(0, 0.02)" in text

    class TiedAfterwards(Base):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)

        def finish(self) -> None:
            self.head.weight = self.wte.weight

    assert topics(TiedAfterwards).keys() == {"doubly-initialised"}
    assert not topics(Same)  # a second draw by the same law does no harm


@pytest.mark.numeric
@pytest.mark.parametrize(
    "name, factor",
    [("1/√(2L)", lambda layer: 6**-0.5), ("1/√L", lambda layer: 3**-0.5),
     ("1/(2L)", lambda layer: 1 / 6), ("1/√(2(l+1))", lambda layer: (2 * layer + 2) ** -0.5)],
)  # fmt: skip
def test_depth_factors_are_named(name: str, factor: Callable[[int], float]) -> None:
    class Scaled(Base):
        def finish(self) -> None:
            for layer in range(3):
                self.scale(f"{layer}.proj.weight", factor(layer))

    laws = read_laws(at(Scaled))
    assert depth_factors(laws) == {"h.*.proj.weight": name}
    roles = {law.name: "fc" if "fc" in law.name else "attn_proj" for law in laws}
    assert {v.severity for v in findings(laws, roles)} == {"note"}
    swapped = {n: {"fc": "attn_proj", "attn_proj": "fc"}[role] for n, role in roles.items()}
    texts = [v.text for v in findings(laws, swapped) if v.severity == "warn"]
    assert any("but it is fc, which does not write" in text for text in texts)


def started(model_type: str) -> tuple[list[ParameterLaw], Any]:
    config = small_config(model_type)
    wide = copy.deepcopy(config)
    assert config_doubled(wide)
    library: Any = transformers.AutoModelForCausalLM

    def build(seed: int, config: Any = config) -> Any:
        torch.manual_seed(seed)
        return library.from_config(copy.deepcopy(config), dtype=torch.float32)

    return read_laws(build, lambda seed: build(seed, wide)), config


@pytest.mark.numeric
def test_the_range_of_a_configuration_is_followed() -> None:
    laws, config = started("llama")
    matrices = [law for law in laws if law.kind == "random"]
    assert len(matrices) == 7 * LAYERS + 2
    for law in matrices:
        assert abs(law.std / config.initializer_range - 1) < 6 * law.error
        assert abs(law.ratio - 2) < 1e-5  # the same draws, twice as large


@pytest.mark.numeric
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_laws_of_a_start_on_meta_are_those_of_the_whole(tmp_path: Path, model_type: str) -> None:
    whole = {law.name: law for law in started(model_type)[0]}
    small_config(model_type).save_pretrained(tmp_path)
    built = build(str(tmp_path))
    stacks = [n for n, m in built.module.named_modules() if isinstance(m, nn.ModuleList)]
    blocks = [f"{stacks[0]}.{i}" for i in range(LAYERS)]
    lean = read_streamed_laws(built, blocks)
    assert {law.name for law in lean} == whole.keys()
    for law in lean:
        other = whole[law.name]
        assert (law.kind, law.tied, law.shape) == (other.kind, other.tied, other.shape)
        assert abs(law.std - other.std) <= 6 * (law.error + other.error) * other.std
    assert all(p.is_meta for p in built.module.parameters())
    assert depth_factors(lean) == depth_factors(list(whole.values()))


# Norms, positions, heads, experts and ties of many kinds; GPT-2 alone draws with its depth.
SURVEYED = ("falcon", "gemma3_text", "gpt2", "gpt_neox", "mixtral", "opt", "phi", "qwen2_moe")


@pytest.mark.numeric
@pytest.mark.parametrize("model_type", SURVEYED)
def test_decoders_of_the_library_start_as_the_survey_says(model_type: str) -> None:
    found = look(model_type)
    factors = [text.split()[2] for text in found["findings"] if "depth-factor" in text]
    others = {text.split()[1] for text in found["findings"]} - {"depth-factor"}
    scaled = ["transformer.h.*.attn.c_proj.weight:", "transformer.h.*.mlp.c_proj.weight:"]
    assert factors == (scaled if model_type == "gpt2" else [])
    assert others == ({"doubly-initialised"} if model_type == "gpt2" else set())
    assert found["lost_on_meta"] == []
    assert found["damaged_by_loading"] == []
