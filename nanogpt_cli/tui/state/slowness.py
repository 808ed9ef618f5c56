"""Why is it slow? One plain sentence from where the time went and what the machine did."""

from __future__ import annotations

import math

from nanogpt_cli import units
from nanogpt_cli.tui.state.view import RunView

MINUTE = 60.0
# Share of the time from which a part is worth a sentence, and what makes it smaller.
_LIMITS = {
    "paused": (0.5, "Training is paused", "P resumes it"),
    "evaluation": (0.25, "Evaluations take {}", "a larger train.eval_every makes them rarer"),
    "checkpoint": (0.15, "Saving takes {}", "a larger train.checkpoint_every makes it rarer"),
    "sample": (0.15, "Samples take {}", "sample.every and sample.max_new_tokens set how much"),
    "statistics": (0.06, "Statistics of layers take {}", "stats.budget limits them"),
    "data": (0.2, "Fetching data takes {}", "put the prepared data on a faster disk"),
    "other": (0.3, "{} is neither a step nor an evaluation", "the start, compiling, or a slow log"),
}
_BUSY, _IDLE = 0.8, 0.6  # of a GPU, or of the cores
_OTHERS = 0.3  # share of the cores that other programs may keep busy


def answer(view: RunView, seconds: float = MINUTE) -> str:
    """A sentence about the last ``seconds`` that were sampled; "" if nothing was."""
    machine = view.machine
    spent = machine.spent(seconds)
    total = sum(spent.values())
    if total <= 0:
        return ""
    over = {part: spent[part] / total for part in _LIMITS if spent[part] / total > _LIMITS[part][0]}
    if over:
        worst = max(over, key=lambda part: over[part] / _LIMITS[part][0])
        _, what, remedy = _LIMITS[worst]
        said = what.format(f"{units.percent(over[worst])} of the time")
        return f"{said}: {remedy}."
    training = (spent["compute"] + spent["optimizer"]) / total
    said = f"{units.percent(training)} of the time is forward, backward and optimizer"
    busy = machine.gpu_recent("utilization", seconds)
    return _on_gpu(view, said, busy) if math.isfinite(busy) else _on_cpu(view, said, seconds)


def _on_gpu(view: RunView, said: str, busy: float) -> str:
    if busy < _IDLE:
        return (
            f"The GPU is busy {units.percent(busy)} of the time, with kernels too small to fill "
            "it: raise train.batch_size, or set train.compile = true."
        )
    if why := throttled(view):
        return f"{said}, and the GPU's clock is held back: {', '.join(why)}."
    mfu = f", MFU {units.percent(view.mfu)}" if view.mfu else ""
    return f"Nothing is in the way: {said}, and the GPU is {units.percent(busy)} busy{mfu}."


def throttled(view: RunView) -> list[str]:
    """What holds the clocks of the GPUs back now, by name."""
    gpus = view.machine.last.gpus if view.machine.last else {}
    found = [gpu.get("throttled") for gpu in gpus.values() if isinstance(gpu, dict)]
    names = [name for row in found if isinstance(row, list) for name in row]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _on_cpu(view: RunView, said: str, seconds: float) -> str:
    machine = view.machine
    cores, mine = machine.recent("cores", seconds), machine.recent("process_cpu", seconds)
    if not (math.isfinite(cores) and math.isfinite(mine)) or cores <= 0:
        return f"{said[:1].upper()}{said[1:]}."
    gets = f"{mine:.2g} of {units.counted(round(cores), 'core')}"
    others = machine.recent("cpu", seconds) * cores - mine
    if others > _OTHERS * cores and mine < _BUSY * cores:
        return (
            f"Other programs keep about {others:.2g} cores busy, and this run gets {gets}: end "
            f"them, or wait. {said}."
        )
    if mine < _IDLE * cores:
        return f"This run uses {gets}: OMP_NUM_THREADS and train.parts set how many. {said}."
    return f"Nothing is in the way: {said}, on {gets}. A smaller model or a GPU would be faster."
