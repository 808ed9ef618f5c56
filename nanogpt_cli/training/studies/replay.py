"""One step of a run made again, slowly and watched: where the first non-finite value arises.

The step's weights come from the flight recorder (``incidents/step-…``) or from the nearest earlier
checkpoint, from which the steps in between are made again. The forward and backward pass then runs
in several ways; the first one that stays finite names the cure.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training import progress, resuming
from nanogpt_cli.training.checkpoints import checkpoint, retention, saved_state
from nanogpt_cli.training.forecasts.room import check_memory
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.user_input import whole

# Compiled kernels and GPUs round differently from the plain way; other weights differ by more.
_TOLERANCE = 0.02
_NAMES = {
    "embed": "token and position embedding", "q": "query", "k": "key", "v": "value",
    "attn": "attention output", "preact": "MLP pre-activation", "hidden": "MLP activation",
    "mlp": "MLP output", "resid": "residual stream",
}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One way of making the step again.

    Attributes:
        way: e.g. "fp32, math attention".
        loss: mean of the step.
        grad_norm: global gradient norm.
        forward: first tensor of the forward pass that is not finite; "" if all are.
        backward: first gradient of the backward pass that is not finite; "" if all are.
        largest: largest magnitude in the forward pass among finite values.
    """

    way: str
    loss: float
    grad_norm: float
    forward: str
    backward: str
    largest: float

    @property
    def finite(self) -> bool:
        """Whether an update could be made with it."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Report:
    """What a replay found.

    Attributes:
        step: the step, from 1, as in the log.
        source: where its weights came from.
        passes: the way of the run first.
        weights: parameters that were not finite before the step.
        windows: first token of each window whose own loss is not finite in fp32.
        verdict: one sentence.
    """

    step: int
    source: str
    passes: list[Pass]
    weights: list[str]
    windows: list[int]
    verdict: str


def replay(
    run: RunFolder, data: TokenData, step: int, report: Callable[[str], None] = lambda _: None
) -> Report:
    """Make ``step`` (from 1) of a run again.

    Raises:
        UserError: no weights from before that step are left.
    """
    if step < 1:
        raise UserError(f"steps count from 1, not {step}")
    recipe = recipe_files.load_resolved(run.own_recipe())
    if step > recipe.train.max_steps:
        raise UserError(f"run {run.name} has {recipe.train.max_steps} steps, not {step}")
    stepper, source = _before(run, recipe, data, step, report)
    weights = [n for n, p in stepper.model.named_parameters() if not p.detach().isfinite().all()]
    passes = []
    for way, precision, dtype, math_attention in _ways(stepper.device.precision):
        report(f"step {step}: {way}")
        passes.append(_pass(stepper, step - 1, way, precision, dtype, math_attention))
    logged = _logged(run, step)
    if logged is not None and abs(passes[0].loss - logged) > _TOLERANCE * max(1.0, abs(logged)):
        raise UserError(
            f"the log has loss {logged:.4f} for step {step}, recomputed it is "
            f"{passes[0].loss:.4f}: these are not its weights",
            "a run begun with --from can be replayed from its checkpoints and incidents only",
        )
    windows = [] if passes[1].finite else _broken_windows(stepper, step - 1)
    verdict = _verdict(passes, weights, windows, _kind(run, step))
    return Report(step, source, passes, weights, windows, verdict)


def _before(
    run: RunFolder, recipe: Recipe, data: TokenData, step: int, report: Callable[[str], None]
) -> tuple[Stepper, str]:
    """A stepper with the weights that ``step`` began with, and where they came from."""
    plain = recipe.train.model_copy(update={"compile": False})
    recipe = recipe.model_copy(update={"train": plain})
    incident = _incident(run, step)
    before = saved(run, step)
    if before:  # a recipe changed by hand describes another step
        resuming.changes(before, recipe, Group(), source=run.path)
        progress.check_data(run.path, before.get("data", {}), data)
    spec = resolve(recipe, data, state=before)
    check_memory(spec)
    stepper = assemble(spec)
    if foreign_files.present(incident / checkpoint.MODEL):
        progress.copy_weights(stepper.model, incident / checkpoint.MODEL)
        return stepper, f"incidents/{incident.name}"
    return stepper, _catch_up(run, stepper, data, step, report)


def saved(run: RunFolder, step: int) -> dict[str, Any]:
    """What the flight recorder or the newest checkpoint says of the run; empty without either.

    Args:
        run: the run.
        step: the step that the flight recorder may have recorded.

    Raises:
        UserError: what it recorded is damaged.
    """
    incident = _incident(run, step)
    about = incident / "incident.json"
    if foreign_files.present(about):
        facts = foreign_files.read_object(about)
        try:
            saved_state.check(facts)
        except ValueError as error:
            raise UserError(f"{about}: {error}", f"move {incident} away") from None
        return facts
    return progress.newest_state(run)


def _incident(run: RunFolder, step: int) -> Path:
    return run.incidents / f"step-{step:06d}"


def _catch_up(
    run: RunFolder, stepper: Stepper, data: TokenData, step: int, report: Callable[[str], None]
) -> str:
    """Restore the nearest earlier checkpoint and make the steps up to ``step``."""
    earlier = [s for s in retention.list_steps(run) if s < step]
    where = "the initial values"
    state = progress.Progress()
    if earlier:
        folder = checkpoint.folder_of(run, earlier[-1])
        checkpoint.verify(folder)
        state = progress.restore(folder, stepper, data)
        where = f"checkpoints/{folder.name}"
    if state.step < step - 1:
        report(f"making steps {state.step + 1} to {step - 1} again from {where}")
    for index in range(state.step, step - 1):
        stepper.step(index, state.lr_factor, skip=index in state.skip)
    return where


def _logged(run: RunFolder, step: int) -> float | None:
    """The finite loss the log has for a step."""
    found = None
    for event in EventReader(run.events).read_all():
        if isinstance(event, events.Step) and event.step == step:
            found = event.loss if math.isfinite(event.loss) else None
    return found


def _kind(run: RunFolder, step: int) -> str:
    """The kind of the incident that the log has for a step; empty without one."""
    found = ""
    for event in EventReader(run.events).read_all():
        if isinstance(event, events.Incident) and event.step == step:
            found = event.kind
    return found


def _ways(precision: str) -> Iterator[tuple[str, str, torch.dtype, bool]]:
    yield f"{precision} as the run", precision, torch.float32, False
    yield "fp32, math attention", "fp32", torch.float32, True
    yield "fp64, math attention", "fp32", torch.float64, True


def _pass(
    stepper: Stepper,
    index: int,
    way: str,
    precision: str,
    dtype: torch.dtype,
    math_attention: bool,
) -> Pass:
    """Forward and backward of a step under a watch; the stepper is left as it was."""
    model = copy.deepcopy(stepper.model).to(dtype).train()
    made = copy.copy(stepper)
    made.device = replace(stepper.device, precision=precision)
    made.model, made.forward = model, model
    watch = _Watch()
    kernel = partial(sdpa_kernel, SDPBackend.MATH) if math_attention else contextlib.nullcontext
    total = 0.0
    batch = stepper.windows.batch
    for start in range(0, batch, stepper.micro_batch):
        slots = range(start, min(start + stepper.micro_batch, batch))
        x, y = made.batch(index, slots)
        with kernel(), made.dropout_stream(index, slots) as noise:
            with made.device.autocast():
                logits, loss = model(x, y, probe=watch, noise=noise)
            watch("logits", -1, logits)
            assert loss is not None
            loss = loss * (len(slots) / batch)
            # The run's scale is part of the fp16 way; here the values themselves are asked for.
            loss.backward()
        total += float(loss.detach())
    norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(value**2 for value in norms.values()))
    backward = watch.backward or next((n for n, v in norms.items() if not math.isfinite(v)), "")
    return Pass(way, total, norm, watch.forward, backward, watch.largest)


class _Watch:
    """A ``Probe`` that remembers the first value that is not finite, on the way there and back."""

    def __init__(self) -> None:
        self.forward = ""
        self.backward = ""
        self.largest = 0.0

    def __call__(self, what: str, layer: int, x: Tensor) -> None:
        """Look at one intermediate tensor."""
        name = _NAMES.get(what, what) + (f" of layer {layer}" if layer >= 0 else "")
        seen = x.detach()
        finite = seen.isfinite()
        if not self.forward and not bool(finite.all()):
            self.forward = name
        if bool(finite.any()):
            self.largest = max(self.largest, float(seen[finite].abs().max()))
        if x.requires_grad:
            hook: Any = x
            hook.register_hook(lambda grad: self._back(name, grad))

    def _back(self, name: str, grad: Tensor) -> None:
        if not self.backward and not bool(grad.isfinite().all()):
            self.backward = f"gradient of {name}"


@torch.no_grad()
def _broken_windows(stepper: Stepper, index: int) -> list[int]:
    """First token of each window whose loss is not finite by itself."""
    model: GPT = copy.deepcopy(stepper.model).float().eval()
    found = []
    for slot, offset in enumerate(stepper.windows.offsets(index, range(stepper.windows.batch))):
        x, y = stepper.batch(index, range(slot, slot + 1))
        _, loss = model(x, y)
        if loss is not None and not math.isfinite(float(loss)):
            found.append(int(offset))
    return found


def _verdict(passes: list[Pass], weights: list[str], windows: list[int], kind: str = "") -> str:
    first = passes[0]
    if weights:
        return (
            f"the weights were not finite before the step ({weights[0]}): an earlier update broke "
            "them; resume from an earlier checkpoint with a lower optim.lr"
        )
    if first.finite and kind in ("loss_spike", "divergence"):
        return (
            f"nothing overflows: the loss of {first.loss:.4g} comes of the weights, whose largest "
            f"signal is {first.largest:.3g}; lower optim.lr, or warm up longer"
        )
    if first.finite:
        return (
            "finite when made again without compilation: if the run was compiled, "
            "train.compile = false cures it; otherwise suspect the hardware"
        )
    broke = first.forward or first.backward
    cure = next((p for p in passes[1:] if p.finite), None)
    if cure is None:
        where = f"; {len(windows)} windows are broken by themselves" if windows else ""
        return f"{broke} breaks in every number format: lower optim.lr or optim.grad_clip{where}"
    if cure is passes[1] and first.way.startswith("fp32"):
        return f"{broke} overflows in the fused attention alone: lower optim.lr"
    if cure is passes[1]:
        return f'{broke} breaks in {first.way}; train.precision = "fp32" cures it'
    return f"{broke} leaves the range of fp32 (fp64 stays finite): lower optim.lr"


def to_json(report: Report) -> dict[str, Any]:
    """Plain values; NaN and infinities are left to the writer."""
    return {**vars(report), "passes": [vars(p) | {"finite": p.finite} for p in report.passes]}


def known_steps(folder: Path) -> list[int]:
    """Steps the flight recorder kept."""
    found = (whole(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    return sorted(step for step in found if step is not None)
