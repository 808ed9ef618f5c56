from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanogpt_cli import recipe, schemes
from nanogpt_cli.init import drawing
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.training.optim import Optimizers, lr_factor
from nanogpt_cli.training.optimizers.adamw import AdamW

CONFIG = GPTConfig(
    n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=11, dropout=0.0, bias=True,
    activation="gelu",
)  # fmt: skip


def section(**keys: Any) -> recipe.Optim:
    return recipe.Optim(**{"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 10, **keys})


def model(**keys: Any) -> GPT:
    return drawing.build(replace(CONFIG, **keys), schemes.get("gpt2"), 0)


def test_warmup_is_linear_and_reaches_the_peak_after_its_last_step() -> None:
    optim = section()
    found = [lr_factor(step, optim, 100) for step in range(11)]
    assert found == pytest.approx([(step + 1) / 11 for step in range(10)] + [1.0])


def test_cosine_against_its_closed_form() -> None:
    optim = section(schedule="cosine")
    for step in (10, 37, 55, 99, 100, 5000):
        done = min(1.0, (step - 10) / 90)
        wanted = 1e-3 + 0.5 * (1e-2 - 1e-3) * (1 + math.cos(math.pi * done))
        assert lr_factor(step, optim, 100) * 1e-2 == pytest.approx(wanted)


def test_cosine_is_that_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 90, eta_min=1e-3)
    for step in range(10, 100):
        assert lr_factor(step, section(), 100) * 1e-2 == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()


def test_linear_wsd_and_constant() -> None:
    linear = section(schedule="linear", warmup_steps=0)
    assert [lr_factor(s, linear, 100) for s in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    wsd = section(schedule="wsd", decay_fraction=0.2)
    assert [lr_factor(s, wsd, 100) for s in (10, 80, 90, 100)] == pytest.approx([1, 1, 0.55, 0.1])
    root = section(schedule="wsd", decay_fraction=0.2, decay_shape="1-sqrt")
    wanted = 0.1 + 0.9 * (1 - math.sqrt(0.25))
    assert lr_factor(85, root, 100) == pytest.approx(wanted)
    constant = section(schedule="constant")
    assert [lr_factor(s, constant, 100) for s in (10, 99, 1000)] == [1, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_factors_stay_between_zero_and_one(schedule: str, warmup: int) -> None:
    optim = section(schedule=schedule, warmup_steps=warmup, min_lr=0.0)
    factors = [lr_factor(step, optim, 100) for step in range(100)]
    assert min(factors[:99]) > 0
    assert max(factors) <= 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name: str) -> None:
    gpt = model()
    optimizers = Optimizers(gpt, section(name=name), schemes.get("gpt2"), max_steps=10)
    seen: dict[str, tuple[str, float]] = {}
    for member in optimizers.members:
        for group in member.param_groups:
            for p in group["params"]:
                assert optimizers.names[p] not in seen
                kind = type(member).__name__
                seen[optimizers.names[p]] = (kind, group["weight_decay"])
    assert seen.keys() == dict(gpt.named_parameters()).keys()
    for key, (kind, decay) in seen.items():
        matrix = gpt.get_parameter(key).dim() == 2
        assert (decay > 0) == matrix, key
        assert (kind == "Muon") == (name == "muon" and matrix and ".h." in key), key


def test_tied_weights_are_labelled_once() -> None:
    tied = Optimizers(model(), section(), schemes.get("gpt2"), max_steps=10)
    loose = Optimizers(model(tied=False), section(), schemes.get("gpt2"), max_steps=10)
    assert "lm_head.weight" not in tied.names.values()
    assert "lm_head.weight" in loose.names.values()


def test_adamw_equals_a_hand_written_one() -> None:
    gpt = model()
    optim = section()
    optimizers = Optimizers(gpt, optim, schemes.get("gpt2"), max_steps=100)
    name = "transformer.h.1.mlp.c_fc.weight"
    p = gpt.get_parameter(name)
    w = p.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(5):
        torch.manual_seed(step)
        for q in gpt.parameters():
            q.grad = torch.randn_like(q)
        g = p.grad.double()  # type: ignore[union-attr]
        lr = optimizers.set_lr(step)
        assert lr == pytest.approx(optim.lr * (step + 1) / 11)
        w -= lr * optim.weight_decay * w
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        corrected = (v / (1 - 0.95 ** (step + 1))).sqrt() + optim.eps
        w -= lr * (m / (1 - 0.9 ** (step + 1))) / corrected
        optimizers.step()
        optimizers.zero_grad()
    assert (p.double() - w).abs().max() < 1e-6


def test_mup_scales_the_rate_of_hidden_matrices() -> None:
    gpt = model(n_embd=32)
    optimizers = Optimizers(gpt, section(), schemes.get("mup"), max_steps=10)
    scales = {
        optimizers.names[p]: group["lr_scale"]
        for member in optimizers.members
        for group in member.param_groups
        for p in group["params"]
    }
    wide = Optimizers(model(n_embd=64), section(), schemes.get("mup"), max_steps=10)
    wider = {
        wide.names[p]: group["lr_scale"]
        for member in wide.members
        for group in member.param_groups
        for p in group["params"]
    }
    hidden = "transformer.h.0.mlp.c_fc.weight"
    assert wider[hidden] == pytest.approx(scales[hidden] / 2)
    assert wider["transformer.wte.weight"] == scales["transformer.wte.weight"]


def options_of(optimizers: Optimizers) -> dict[str, tuple[float, float, float]]:
    """(factor on the learning rate, ε, decay) of every parameter by name, as AdamW gets them."""
    return {
        optimizers.names[p]: (group["lr_scale"], group["eps"], group["weight_decay"])
        for member in optimizers.members
        for group in member.param_groups
        for p in group["params"]
    }


# Dey et al. 2505.01618, table 1, for m_N = 2 and m_L = 4: ε times 1/(m_N·m_L^α) inside the blocks,
# decay of their matrices times m_N, learning rates times m_L^(α-1), of matrices also over m_N.
@pytest.mark.parametrize(("scheme", "alpha"), [("completep", 1.0), ("depth-mup", 0.5)])
def test_groups_follow_the_table_of_completep(scheme: str, alpha: float) -> None:
    optim = section(weight_decay=0.1, eps=1e-6)
    config = GPTConfig(8, 2, 512, 4, 8, 0.0, True, "gelu", tied=False)
    found = options_of(Optimizers(GPT(config), optim, schemes.get(scheme), max_steps=10))
    rate, eps = 4 ** (alpha - 1), 1e-6 / (2 * 4**alpha)
    matrix, vector = (rate / 2, eps, 0.2), (rate, eps, 0.0)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert found[f"transformer.h.3.{name}.weight"] == pytest.approx(matrix)
        assert found[f"transformer.h.3.{name}.bias"] == pytest.approx(vector)
    for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
        assert found[f"transformer.h.3.{name}"] == pytest.approx(vector)
    for name in ("transformer.ln_f.weight", "transformer.ln_f.bias"):
        assert found[name] == (1.0, 1e-6, 0.0)
    for name in ("transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"):
        assert found[name] == (1.0, 1e-6, 0.1)


def test_other_schemes_leave_epsilon_and_decay_as_the_recipe_has_them() -> None:
    optim = section(weight_decay=0.1, eps=1e-6)
    gpt = model()
    for name in set(schemes.names()) - {"completep", "depth-mup"}:
        for key, (_, eps, decay) in options_of(
            Optimizers(gpt, optim, schemes.get(name), max_steps=10)
        ).items():
            assert (eps, decay) == (1e-6, 0.1 if gpt.get_parameter(key).dim() == 2 else 0.0)


def test_a_factor_on_layer_norms_holds_for_the_last_one_unless_that_has_its_own() -> None:
    gpt = model()
    own = schemes.parse_custom({"lr": {"ln": "0.5"}, "eps": {"ln": "2", "ln_f": "3"}})
    found = options_of(Optimizers(gpt, section(eps=1e-6), own, max_steps=10))
    assert found["transformer.ln_f.weight"][:2] == pytest.approx((0.5, 3e-6))
    assert found["transformer.h.0.ln_1.weight"][:2] == pytest.approx((0.5, 2e-6))


def test_state_that_belongs_to_nothing_is_refused() -> None:
    optimizers = Optimizers(model(), section(), schemes.get("gpt2"), max_steps=10)
    with pytest.raises(ValueError, match="belongs to no parameter"):
        optimizers.load_tensors({"transformer.h.9.mlp.c_fc.weight.exp_avg": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"is \(2,\)"):
        optimizers.load_tensors({"transformer.wte.weight.exp_avg": torch.zeros(2)})


def test_adamw_is_pytorchs() -> None:
    """The class around the kernel left out, the bits are the same."""
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7)]
    theirs = [p.clone().requires_grad_() for p in ours]
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    mine = AdamW(
        [{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:], "lr": 0.01}], **options
    )
    slow = torch.optim.AdamW(
        [{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.01, "weight_decay": 0.0}],
        **options, weight_decay=0.1, fused=True,
    )  # fmt: skip
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        slow.step()
        mine.zero_grad()
    for p, q in zip(ours, theirs, strict=True):
        assert p.grad is None
        assert torch.equal(p, q)
        for key, value in slow.state[q].items():
            assert torch.equal(mine.state[p][key], value)


def test_adamw_shared_out_to_threads_has_the_same_bits() -> None:
    torch.manual_seed(0)
    one = [torch.randn(300, 100, requires_grad=True) for _ in range(5)]
    three = [p.detach().clone().requires_grad_() for p in one]
    first, second = (AdamW(ps, lr=0.1, betas=(0.9, 0.95), eps=1e-8) for ps in (one, three))
    for _ in range(3):
        for p, q in zip(one, three, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        first.step()
        second.step(n_parts=3)
    for p, q in zip(one, three, strict=True):
        assert torch.equal(p, q)


def test_state_that_lacks_a_part_is_refused() -> None:
    optimizers = Optimizers(model(), section(), schemes.get("gpt2"), max_steps=10)
    name = next(iter(optimizers.names.values()))
    other = next(n for n in optimizers.names.values() if n != name)
    shapes = {optimizers.names[p]: p for p in optimizers.names}
    tensors = {f"{n}.{part}": torch.zeros_like(shapes[n]) for n in (name, other)
               for part in ("exp_avg", "exp_avg_sq")}  # fmt: skip
    del tensors[f"{name}.exp_avg_sq"]
    with pytest.raises(ValueError, match=r"exp_avg_sq is missing"):
        optimizers.load_tensors(tensors)
