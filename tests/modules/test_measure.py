"""What is measured at places found without names equals what hooks on the named modules measure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from architectures import FAMILIES, VOCABULARY, WIDTH, Names, model, tokens
from oracle import Hooked, gradients, logits_of
from small_models import Looped, T, V, norm
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.errors import UserError
from nanogpt_cli.init import inspect
from nanogpt_cli.init.sources import Stored
from nanogpt_cli.model.gpt import GPT, GPTConfig, Multipliers
from nanogpt_cli.modules.graph.stream import watch
from nanogpt_cli.modules.measure import measure, observer


def compare(module: nn.Module, names: Names) -> None:
    """Compare every number with that of hooks; relative differences come from float32 alone."""
    ids, targets = tokens()
    found = measure(module, watch(module, ids), ids, targets, backward=True).signals
    hooked = Hooked(module, names)
    with torch.no_grad(), hooked.softmaxes():
        logits = logits_of(module, ids)
    for name, expected in hooked.numbers().items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    flat = logits.double().flatten(0, 1)  # (N, V)
    every = torch.arange(len(flat))
    mean = flat.mean(1)
    for measured, own in (
        (found.loss, F.cross_entropy(flat, targets.flatten())),
        (found.loss_any, -flat.log_softmax(1).mean()),
        (found.logit_std, flat.var(1, correction=0).mean().sqrt()),
        (found.own_logit, (flat[every, ids.flatten()] - mean).mean()),
    ):
        assert measured == pytest.approx(float(own), rel=1e-5, abs=1e-6)
    stream, norms = gradients(module, hooked, ids, targets)
    assert found.grad_rms == pytest.approx(stream, rel=1e-5)
    for kind, values in norms.items():
        assert found.weight_grad[kind] == pytest.approx(values, rel=1e-5), kind


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_those_of_hooks(family: str) -> None:
    compare(model(family), FAMILIES[family])


class Encoder(nn.Module):
    """A language model of PyTorch's own encoder layers with a causal mask."""

    def __init__(self, *, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 80, norm_first=norm_first, batch_first=batch_first, activation="gelu"
        )
        self.batch_first = batch_first
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x if self.batch_first else x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        y = self.head(self.encoder(x, mask=mask, is_causal=True))
        logits: Tensor = y if self.batch_first else y.transpose(0, 1)
        return logits


_ENCODER = Names(
    {}, "encoder.layers", attn="self_attn", mlp="linear2", act="", down="linear2",
    qkv="self_attn.in_proj_weight", out="self_attn.out_proj.weight", fc="linear1.weight",
    proj="linear2.weight",
)  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_of_pytorch_with_a_causal_mask(norm_first: bool) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it bypasses the hooks of the oracle
        compare(Encoder(norm_first=norm_first, batch_first=True).eval(), _ENCODER)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.numeric
def test_positions_may_come_before_sequences() -> None:
    ids, targets = tokens()
    found = []
    for batch_first in (True, False):
        module = Encoder(norm_first=True, batch_first=batch_first)
        found.append(measure(module, watch(module, ids), ids, targets).signals)
    for name in ("stream_rms", "cosine", "attn_rms", "score_std", "attn_entropy", "loss"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-5), name


@pytest.mark.numeric
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu"},
        {"activation": "swiglu", "tied": False},
        {"activation": "relu2", "multipliers": Multipliers(2.0, 0.5, 0.2, 0.7)},
    ],
)
def test_this_projects_gpt_gives_what_its_own_inspection_gives(options: dict[str, Any]) -> None:
    config = GPTConfig(3, 4, WIDTH, 32, VOCABULARY, 0.1, True, **options)
    torch.manual_seed(0)
    module = GPT(config)
    ids, targets = tokens()
    found = measure(module, watch(module, ids), ids, targets, backward=True).signals.to_dict()
    parameters = dict(module.named_parameters())
    expected = inspect.measure(Stored(config, parameters.__getitem__), ids, targets)
    for name, value in expected.signals.to_dict().items():
        if name == "weight_grad":
            for kind, norms in value.items():
                assert found[name][kind] == pytest.approx(norms, rel=1e-4), kind
        else:
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name


@pytest.mark.numeric
def test_one_block_that_runs_several_times() -> None:
    module = Looped()
    ids = torch.arange(2 * T).view(2, T) % V
    found = measure(module, watch(module, ids), ids, ids.roll(-1, 1), backward=True)
    with torch.no_grad():
        states = [module.w(ids)]
        for _ in range(3):
            states.append(module.layer(states[-1]))
        branch = module.layer.s * module.layer.m(norm(states[0]))
        sizes = [float(x.square().mean().sqrt()) for x in (*states, branch)]
    assert [*found.signals.stream_rms, found.signals.attn_rms[0]] == pytest.approx(sizes, rel=1e-5)
    assert len(found.signals.grad_rms) == 4
    assert all(math.isfinite(g) and g > 0 for g in found.signals.grad_rms)


def test_statistics_are_those_of_each_part() -> None:
    module = model("gpt_neox")
    ids, targets = tokens()
    found = {t.key: t for t in measure(module, watch(module, ids), ids, targets).tensors}
    fused = module.get_parameter("gpt_neox.layers.0.attention.query_key_value.weight")
    k = fused.detach().view(4, 3, 12, WIDTH)[:, 1]
    stats = found["gpt_neox.layers.0.attention.query_key_value.weight/k"]
    assert stats.tensor_class == "k"
    assert stats.shape == (WIDTH, WIDTH)
    assert stats.std == pytest.approx(float(k.double().std(correction=0)), rel=1e-6)
    assert (stats.minimum, stats.maximum) == (float(k.min()), float(k.max()))
    assert {"wte", "lm_head", "q", "v", "attn_proj", "fc", "mlp_proj"} <= {
        t.tensor_class for t in found.values()
    }


def test_an_observer_sees_blocks_whole_and_other_modules_alone() -> None:
    module = model("llama")
    ids, targets = tokens()
    anatomy = watch(module, ids)
    seen: list[Any] = []
    observe = observer(anatomy, seen)
    for path, child in module.named_modules():
        if path and not any(path.startswith(f"{block}.") for block in anatomy.blocks):
            observe(path, child)
    everything = measure(module, anatomy, ids, targets).tensors
    assert sorted(t.key for t in seen) == sorted(t.key for t in everything)


def test_a_module_without_a_head_has_no_loss() -> None:
    module = model("gpt2").get_submodule("transformer")
    ids, targets = tokens()
    found = measure(module, watch(module, ids), ids, targets, backward=True).signals
    assert len(found.stream_rms) == 4
    assert math.isnan(found.loss)
    assert found.grad_rms == []


def test_frozen_parameters_stay_frozen() -> None:
    module = model("gpt2").requires_grad_(False)
    ids, targets = tokens()
    found = measure(module, watch(module, ids), ids, targets, backward=True).signals
    assert found.weight_grad["fc"][0] > 0
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_a_module_that_takes_another_course_is_refused() -> None:
    module = Looped()
    ids = torch.arange(T).view(1, T)
    anatomy = watch(module, ids)
    module.layer.forward = lambda x: x.exp() + norm(x).neg()  # type: ignore[method-assign]
    with pytest.raises(UserError, match="does not compute what it did when it was watched"):
        measure(module, anatomy, ids, ids)
