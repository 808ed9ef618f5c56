"""A few lines of TOML correct what was found, and every mistake in them is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_models import Carried, Looped, T, V

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.graph.override import parse_override, read_override
from nanogpt_cli.modules.graph.stream import watch
from nanogpt_cli.modules.measure import measure

IDS = torch.arange(2 * T).view(2, T) % V


def test_roles_kinds_and_blocks_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "anatomy.toml"
    file.write_text(
        'blocks = "layers"\n[roles]\n"*.m.b.weight" = "mlp_proj"\n"layers.0.s" = "norm"\n'
        '[writes]\n"*.e" = "other"\n'
    )
    found = watch(Carried(), IDS, override=read_override(file))
    assert found.blocks == ("layers.0", "layers.1", "layers.2")
    assert {p.role for p in found.parts if p.parameter.endswith("m.b.weight")} == {"mlp_proj"}
    assert [p.role for p in found.parts if p.parameter.endswith(".s")] == ["norm", "scale", "scale"]
    assert {w.kind for w in found.writes} == {"embed", "attn", "other"}


def test_measuring_follows_the_corrections() -> None:
    module = Carried()
    override = parse_override('blocks = ["layers.0", "layers.2"]\n[writes]\n"*.e" = "attn"')
    found = watch(module, IDS, override=override)
    signals = measure(module, found, IDS, IDS.roll(-1, 1)).signals
    plain = measure(module, watch(module, IDS), IDS, IDS.roll(-1, 1)).signals
    assert signals.stream_rms == [plain.stream_rms[0], *plain.stream_rms[2:]]
    assert all(map(math.isnan, signals.mlp_rms))  # nothing is added by an MLP


@pytest.mark.parametrize(
    "text, message",
    [
        ("blocks = 3", "blocks must be a path"),
        ("block = 'layers'", 'unknown key "block"'),
        ("[roles]\n'*.a' = 'fcc'", r'roles\."\*\.a": unknown "fcc" \(did you mean fc\?\)'),
        ("[roles]\n'*.a' = 7", 'unknown "7"'),
        ("[roles]\nx.a = 'fc'", r'roles\."x" is a table \(put names with dots in quotation'),
        ("roles = 'fc'", "roles must be a table"),
        ("[writes]\n'*.a' = 'attention'", 'unknown "attention"'),
        ("[roles\n", "it is not TOML"),
        ("[roles]\n'\\u001b' = 'x'".replace("'\\", '"\\').replace("b' ", 'b" '), r"\\x1b"),
    ],
)
def test_mistakes_in_the_text_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_override(text)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("blocks = 'layerz'", r'blocks: no module of the model matches "layerz" \(did you mean'),
        ("[roles]\n'*.mixer.weight' = 'fc'", "roles: no parameter of the model matches"),
        ("[writes]\n'*.mixer' = 'mlp'", "writes: no module of the model matches"),
        ("blocks = 'layer.m'", "blocks: the residual stream does not pass all of them"),
    ],
)
def test_patterns_that_match_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        watch(Looped(), IDS, override=parse_override(text))


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml"):
        read_override(tmp_path / "none.toml")


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("x = 1")
    with pytest.raises(UserError, match=r'mine\.toml: unknown key "x"'):
        read_override(file)
