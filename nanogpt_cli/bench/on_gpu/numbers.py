"""Items ``reference`` and ``optimizers``: does the GPU compute what it should?"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nanogpt_cli.training.stepper import Stepper

# A GPU adds in another order than a CPU, one after the other instead of in blocks: over a sum of
# 50,304 terms that may be 15 times the error. A format with fewer digits than were asked for (TF32
# for float32) has a thousand times the error.
_FACTOR = 32.0
_SEED = 0


def reference(report: Report, setting: Setting) -> None:
    """Gradients of one step on the device and on the CPU, both against float64; the loss after it.

    The context is longer than what a CPU computes in float32 whatever is asked for.
    """
    sets = setup.gpt2(
        setting, "model.n_layer=2", "model.n_head=4", "model.n_embd=128",
        f"model.block_size={setting.size(1024, 520)}", "train.batch_size=2",
        f"train.tokens_per_step={2 * setting.size(1024, 520)}", "train.compile=false",
        "optim.warmup_steps=0",
    )  # fmt: skip
    for precision in ("fp32", "bf16"):
        with report.part(precision) as part:
            chosen = [*sets, f"train.precision={precision}"]
            there = setup.stepper("gpt2-124m-nanogpt", chosen)
            here = setup.stepper("gpt2-124m-nanogpt", [*chosen, 'train.device="cpu"'])
            _compare(part, there, here, precision)


def _compare(part: Part, there: Stepper, here: Stepper, precision: str) -> None:
    first = {"device": there.measure(0), "cpu": here.measure(0)}
    loss, exact = _exact(here)
    part.facts["float64_loss"] = loss
    errors = {"device": _error(there, exact), "cpu": _error(here, exact)}
    part.facts["gradient_error"] = errors
    part.check(
        errors["device"] <= _FACTOR * errors["cpu"],
        f"the gradient's error is {errors['device']:.2g}, on the CPU {errors['cpu']:.2g}",
    )
    there.apply(first["device"])
    here.apply(first["cpu"])
    found, expected = (
        [first[name].loss, stepper.measure(1).loss]
        for name, stepper in (("device", there), ("cpu", here))
    )
    setup.compare(part, found, expected, precision, here.model.config.n_embd)


def _exact(stepper: Stepper) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the first step in float64 on the CPU, before any update."""
    model = copy.deepcopy(stepper.model).double()
    model.zero_grad()
    loss = model.loss(*stepper.batch(0, stepper.slots))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def _error(stepper: Stepper, exact: list[Tensor]) -> float:
    """The largest relative error of a parameter's gradient, by norms."""
    grads = [p.grad.double().cpu() for p in stepper.model.parameters() if p.grad is not None]
    return max(
        float((found - true).norm() / true.norm()) for found, true in zip(grads, exact, strict=True)
    )


def optimizers(report: Report, setting: Setting) -> None:
    """Our AdamW against PyTorch's fused one; how near to 1 Muon brings singular values."""
    import torch

    device = torch.device(setting.device)
    with report.part("adamw") as part:
        _adamw(part, device, _shapes(setting))
    for dtype in (torch.float32, torch.bfloat16):
        with report.part(f"muon {str(dtype).removeprefix('torch.')}") as part:
            _muon(part, device, dtype, setting)


def _shapes(setting: Setting) -> list[torch.Size]:
    """The shapes of gpt2-124m's parameters."""
    import torch

    from nanogpt_cli.model.gpt import GPT
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.training import spec

    recipe = recipe_files.load("gpt2-124m-nanogpt", list(setup.TINY) if setting.tiny else []).recipe
    with torch.device("meta"):
        model = GPT(spec.model_config(recipe, recipe.model.vocab_size))
    return [p.shape for p in model.parameters()]


def _adamw(part: Part, device: torch.device, shapes: list[torch.Size]) -> None:
    """Five updates of both are equal; seconds of one."""
    import torch

    from nanogpt_cli.training.optimizers.adamw import AdamW

    generator = torch.Generator(device).manual_seed(_SEED)

    def drawn() -> list[Tensor]:
        return [torch.randn(s, device=device, generator=generator) * 0.02 for s in shapes]

    ours = [torch.nn.Parameter(value) for value in drawn()]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    mine = AdamW(ours, **options)  # type: ignore[arg-type]
    torchs = torch.optim.AdamW(theirs, **options, fused=True)  # type: ignore[arg-type]
    for _ in range(5):
        for a, b, grad in zip(ours, theirs, drawn(), strict=True):
            a.grad, b.grad = grad, grad.clone()
        mine.step()
        torchs.step()
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))
    part.facts |= {
        "parameters": sum(p.numel() for p in ours), "largest_difference": gap,
        "ours_s": setup.seconds(mine.step, device, repeats=10),
        "torch_s": setup.seconds(torchs.step, device, repeats=10),
    }  # fmt: skip
    part.check(gap == 0, f"weights differ by {gap:.3g} from those of torch.optim.AdamW")


def _muon(part: Part, device: torch.device, dtype: torch.dtype, setting: Setting) -> None:
    """Singular values of one update of each kind of matrix in gpt2-124m."""
    import torch

    from nanogpt_cli.training.optimizers.muon import Muon

    C = setting.size(768, 32)
    generator = torch.Generator(device).manual_seed(_SEED)
    shapes = {"c_attn": (3 * C, C), "attn.c_proj": (C, C), "c_fc": (4 * C, C),
              "mlp.c_proj": (C, 4 * C)}  # fmt: skip
    matrices = {
        name: torch.nn.Parameter(torch.zeros(shape, device=device))
        for name, shape in shapes.items()
    }
    for matrix in matrices.values():
        matrix.grad = torch.randn(matrix.shape, device=device, generator=generator)
    groups = [
        {"params": [matrix], "split": 3 if name == "c_attn" else 1}
        for name, matrix in matrices.items()
    ]
    muon = Muon(groups, lr=1.0, momentum=0.95, weight_decay=0.0, ns_steps=5, dtype=dtype)
    muon.step()
    for name, matrix in matrices.items():
        pieces = 3 if name == "c_attn" else 1
        found = [
            _singular(update, grad)
            for update, grad in zip(
                matrix.detach().chunk(pieces), _grad(matrix).chunk(pieces), strict=True
            )
        ]
        low, high = min(a for a, _ in found), max(b for _, b in found)
        part.facts[name] = [low, high]
        # 0.12 is what five polynomials leave; bf16 adds its rounding in each of them.
        room = 0.13 if dtype == torch.float32 else 0.13 + 16 * torch.finfo(dtype).eps
        part.check(
            1 - room <= low and high <= 1 + room,
            f"{name}: singular values of the update are {low:.3f} to {high:.3f}",
        )
    part.facts["seconds"] = setup.seconds(muon.step, device, repeats=5)


def _grad(matrix: Tensor) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad


def _singular(update: Tensor, grad: Tensor) -> tuple[float, float]:
    """What became of the gradient's singular values above a thousandth of its norm, by vectors."""
    import torch

    rows, columns = update.shape
    u, values, vh = torch.linalg.svd(grad.double().cpu(), full_matrices=False)
    scale = max(1.0, rows / columns) ** 0.5
    became = -(u.mT @ update.double().cpu() @ vh.mT).diagonal() / scale
    became = became[values >= 1e-3 * values.norm()]
    return float(became.min()), float(became.max())
