"""What is measured at places found without names equals what hooks on the named modules measure."""

from __future__ import annotations

import pytest
import torch
from architectures import FAMILIES, model, tokens
from oracle import Hooked, gradients
from torch.nn import functional as F

from nanogpt_cli.modules.measure import measure
from nanogpt_cli.modules.stream import watch


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_those_of_hooks(family: str) -> None:
    module = model(family)
    ids, targets = tokens()
    found = measure(module, watch(module, ids), ids, targets, backward=True).signals

    hooked = Hooked(module, FAMILIES[family])
    with torch.no_grad(), hooked.softmaxes():
        logits = module(ids, use_cache=False).logits
    for name, expected in hooked.numbers().items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    assert found.loss == pytest.approx(
        float(F.cross_entropy(logits.flatten(0, 1), targets.flatten())), rel=1e-5
    )
    assert found.logit_std == pytest.approx(
        float(logits.double().var(-1, correction=0).mean().sqrt()), rel=1e-5
    )
    stream, norms = gradients(module, hooked, ids, targets)
    assert found.grad_rms == pytest.approx(stream, rel=1e-4)
    for kind, values in norms.items():
        assert found.weight_grad[kind] == pytest.approx(values, rel=1e-4), kind
