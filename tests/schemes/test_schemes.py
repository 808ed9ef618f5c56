from __future__ import annotations

import math
from typing import Any

import pytest

from nanogpt_cli import schemes
from nanogpt_cli.errors import UserError

WANTED = (
    "gpt2 gpt2-tf normal scaled-1L proj-sqrt2L proj-x0.02 proj-fanin0.02 scaled-all zero-proj "
    "layer-index pytorch pytorch-embtie xavier xavier-fused kaiming lecun orthogonal "
    "scaled-orthogonal small-wang small-wang-tiny gpt2-w mitchell full-megatron mup depth-mup "
    "completep spectral-mup modded nanochat deepnorm subln t-fixup "
    "lookback "
)


def std(name: str, kind: str, *, d: int = 768, L: int = 12, layer: int = 0) -> float:
    fans = {"fc": (4 * d, d), "mlp_proj": (d, 4 * d)}.get(kind, (d, d))
    values = {"d": d, "L": L, "l": layer, "D": 64, "V": 50304, "T": 1024}
    law = schemes.get(name).law(kind, {**values, "fan_out": fans[0], "fan_in": fans[1]})
    return law.true_std(*fans)


def test_every_promised_scheme_is_there() -> None:
    assert set(WANTED.split()) <= set(schemes.names())


@pytest.mark.parametrize("name", schemes.names())
def test_every_scheme_says_what_it_is_and_has_a_law_for_every_class(name: str) -> None:
    scheme = schemes.get(name)
    assert scheme.about
    assert scheme.source
    assert set(scheme.rules) == set(schemes.CLASSES)
    assert all(math.isfinite(std(name, kind)) for kind in schemes.CLASSES)


# Each value computed by hand from the scheme's publication, not by this code.
@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("gpt2", "attn_proj", 0.0040825),
        ("gpt2", "mlp_proj", 0.0040825),
        ("gpt2", "fc", 0.02),
        ("gpt2-tf", "wpe", 0.01),
        ("scaled-1L", "mlp_proj", 0.0057735),
        ("proj-sqrt2L", "attn_proj", 0.0081650),
        ("proj-x0.02", "mlp_proj", 0.0004),
        ("proj-fanin0.02", "mlp_proj", 0.00072169),
        ("scaled-all", "q", 0.0040825),
        ("pytorch", "wte", 0.020833),
        ("pytorch", "mlp_proj", 0.010417),
        ("pytorch", "wpe", 1.0),
        ("xavier", "q", 0.036084),
        ("xavier-fused", "q", 0.025516),
        ("xavier", "fc", 0.022822),
        ("kaiming", "mlp_proj", 0.025516),
        ("lecun", "fc", 0.036084),
        ("orthogonal", "fc", 0.018042),
        ("scaled-orthogonal", "mlp_proj", 0.0073657),
        ("small-wang", "attn_proj", 0.0060141),
        ("small-wang-tiny", "attn_proj", 0.0030070),
        ("gpt2-w", "fc", 0.022822),
        ("mitchell", "fc", 0.035600),
        ("full-megatron", "wte", 0.0197316),
        ("mup", "fc", 0.011547),
        ("modded", "q", 0.018042),
    ],
)
def test_stds_of_gpt2_small(name: str, kind: str, value: float) -> None:
    assert std(name, kind) == pytest.approx(value, rel=1e-4)


def test_layer_index_depends_on_the_layer() -> None:
    assert std("layer-index", "fc", layer=5) == 0.02
    assert std("layer-index", "mlp_proj", layer=7) == pytest.approx(0.02 / 4)


def test_mup_is_gpt2_at_its_base_width_and_slower_above() -> None:
    for kind in ("q", "attn_proj", "fc", "mlp_proj"):
        assert std("mup", kind, d=256) == pytest.approx(std("gpt2", kind, d=256))
    mup = schemes.get("mup")
    assert mup.lr_multiplier("fc", n_embd=1024, n_layer=4) == pytest.approx(0.25)
    assert mup.lr_multiplier("qkv", n_embd=1024, n_layer=4) == pytest.approx(0.25)
    assert mup.lr_multiplier("wte", n_embd=1024, n_layer=4) == 1.0
    assert schemes.get("gpt2").lr_multiplier("fc", n_embd=1024, n_layer=4) == 1.0
    assert mup.multiplier("output", {"d": 1024, "L": 4, "D": 64}) == pytest.approx(0.25)


@pytest.mark.parametrize(("alias", "name"), [("NanoGPT", "gpt2"), ("he", "kaiming"), ("µp", "mup")])
def test_aliases(alias: str, name: str) -> None:
    assert schemes.get(alias).name == name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="pytorch"):
        schemes.get("pytroch")


def test_a_class_wins_over_a_small_group_and_that_over_a_large_one() -> None:
    table = {"linear": "normal(0.1)", "proj": "normal(0.2)", "mlp_proj": "normal(0.3)"}
    rules = schemes.parse_custom(table).rules
    got = [rules[kind].formula for kind in ("fc", "attn_proj", "mlp_proj", "wte")]
    assert got == ["0.1", "0.2", "0.3", "0.02"]


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"projj": "normal(0.02)"}, "proj"),
        ({"wte": 3.0}, "wte|law"),
        ({"wte": "normal(width)"}, "width"),
        ({"base": "gpt3"}, "gpt2"),
        ({"base_width": 0}, "base_width"),
        ({"lr": {"heads": "1"}}, "heads"),
        ({"eps": {"fc": "width"}}, "width"),
        ({"decay": {"ln_g": "1"}}, "ln_f"),
        ({"ln_f": "constant(1)"}, "ln_f"),
        ({"multipliers": {"skip": "2"}}, "skip"),
        ({"multipliers": "2"}, "table"),
        ({"wte": ["normal(1)"]}, "wte"),
    ],
)
def test_a_slip_in_a_custom_scheme_is_named(table: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        schemes.parse_custom(table)


def test_a_custom_scheme_keeps_the_multipliers_of_its_base() -> None:
    custom = schemes.parse_custom({"base": "mup", "base_width": 128})
    assert custom.lr_multiplier("fc", n_embd=256, n_layer=2) == pytest.approx(0.5)
