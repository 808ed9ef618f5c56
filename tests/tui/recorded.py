"""Deterministic run folders that look like real ones: the recorded material of the tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanogpt_cli.run import events
from nanogpt_cli.run.log import EventWriter

START = 1_790_000_000.0
PROMPT = "ROMEO:"
TEXTS = (
    "qwz th eo,hn\nsl ahr eht, toe wil\nn the thet he ar'd",
    "\nAnd the wince of the hath the mare\nThat hou the seart of my lord, and all",
    "\nWhat light is this that breaks upon the hollow of the night?\nI'll speak with her, "
    "and she shall answer me,\nThough all the stars stood listening in their spheres.",
)
RECIPE = {
    "run": {"name": "small-shakespeare", "seed": 1337},
    "model": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "init": "gpt2"},
    "train": {"max_steps": 5000, "batch_size": 64},
    "optim": {"name": "adamw", "lr": 1e-3, "warmup_steps": 100, "weight_decay": 0.1},
}


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then a cosine down to a tenth."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * step / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def recorded_events(
    steps: int = 2000,
    *,
    layers: int = 6,
    max_steps: int = 5000,
    name: str = "small-shakespeare",
    lr: float = 1e-3,
    seed: int = 0,
    spike: int | None = 1240,
    nan: int | None = None,
    eval_every: int = 250,
    ended: str = "",
    pid: int = 0,
    host: str = "elsewhere",
    start: float = START,
) -> Iterator[events.Event]:
    """The events of one run, in order."""
    rng = np.random.default_rng(seed)
    recipe = {**RECIPE, "optim": {**RECIPE["optim"], "lr": lr}}
    yield events.RunStarted(
        name=name, time=start, max_steps=max_steps, tokens_per_step=16384, parameters=10_795_776,
        device="cuda: H100", precision="bfloat16", host=host, pid=pid, version="0.1.0",
        vocab_size=65, n_layer=layers, flops_per_token=6.6e7, peak_flops=9.89e14,
        recipe=recipe, expected={
            "resid_rms": [0.03 * math.sqrt(1 + 0.4 * i) for i in range(layers)],
            "attn_entropy": [0.98] * layers,
        },
    )  # fmt: skip
    time, tokens, best = start + 2.0, 0, math.inf
    for step in range(1, steps + 1):
        step_s = 0.09 * (1 + 0.03 * rng.standard_normal())
        time += step_s
        tokens += 16384
        loss = _loss(step, lr) + 0.06 * rng.standard_normal()
        grad = 0.4 + 2.5 * math.exp(-step / 150) + 0.15 * abs(rng.standard_normal())
        if spike is not None and 0 <= step - spike < 6:
            loss, grad = loss + 2.4 / (1 + step - spike), grad * 6
        if step == nan:
            loss = grad = math.nan
        yield events.Step(
            time=round(time, 3), step=step, loss=float(np.float32(loss)),
            lr=learning_rate(step, max_steps, lr), grad_norm=float(np.float32(grad)),
            tokens=tokens, tokens_per_s=round(16384 / step_s, 1), step_s=round(step_s, 5),
            clipped=grad > 1.0, skipped=step == nan,
        )  # fmt: skip
        yield from _around(step, time, loss, layers, rng)
        if step == spike:
            yield events.Alarm(
                time=time, step=step, kind="loss_spike", severity="warning",
                message=f"loss {loss:.2f} is 14 sigma above its average",
                advice="lower optim.lr or raise optim.warmup_steps", value=loss, active=False,
            )  # fmt: skip
        if step == nan:
            yield events.Alarm(
                time=time, step=step, kind="non_finite", severity="error", layer=layers - 1,
                message=f"gradient of h.{layers - 1}.mlp.c_fc is NaN",
                advice="the step was skipped; if it comes again use precision float32",
            )  # fmt: skip
        if step % eval_every == 0:
            time += 1.5
            val = _loss(step, lr) + 0.05 + 0.02 * math.sin(step)
            best = min(best, val)
            yield events.Eval(
                time=time, step=step, val_loss=val, bits_per_byte=val / math.log(2) / 1.02,
                train_loss=_loss(step, lr), seconds=1.5, best=val == best,
            )  # fmt: skip
            yield events.Checkpoint(
                time=time, step=step, path=f"checkpoints/step-{step:06d}", seconds=0.2,
                bytes=129_000_000, best=val == best,
            )  # fmt: skip
            text = TEXTS[min(len(TEXTS) - 1, step * 4 // max(1, max_steps))]
            yield events.Sample(time=time, step=step, prompt=PROMPT, text=text, temperature=0.8)
    if ended:
        yield events.RunEnded(
            time=time, step=steps, reason=ended, best_val_loss=best, seconds=time - start,
            checkpoint=f"checkpoints/step-{steps:06d}",
        )  # fmt: skip


def _loss(step: int, lr: float) -> float:
    speed = 1.3 * (lr / 1e-3) ** 0.3
    return 1.45 + 2.75 * (1 + step * speed / 60) ** -0.75


def _around(
    step: int, time: float, loss: float, layers: int, rng: np.random.Generator
) -> Iterator[events.Event]:
    """Per-layer statistics every 20 steps, histograms every 500."""
    if step % 20:
        return
    depth, age = np.arange(layers), step / 1000
    jitter = 1 + 0.03 * rng.standard_normal((8, layers))
    stats = {
        "resid_rms": 0.03 * np.sqrt(1 + depth) * (1 + 18 * age) * jitter[0],
        "attn_rms": 0.02 * (1 + 6 * age) * (1 + 0.1 * depth) * jitter[1],
        "mlp_rms": 0.025 * (1 + 8 * age) * (1 + 0.15 * depth) * jitter[2],
        "dead": np.clip(0.02 + 0.09 * depth * age / 2, 0, 0.9) * jitter[3],
        "attn_entropy": np.clip(0.98 - 0.25 * age - 0.04 * depth * age, 0.05, 1),
        "attn_logit_max": (1 + 9 * age * (1 + 0.2 * depth)) * jitter[4],
        "weight_rms": 0.02 * (1 + 0.5 * age) * (1 + 0.02 * depth) * jitter[5],
        "grad_norm": (0.2 + math.exp(-age * 6)) / (1 + 0.15 * depth) * jitter[6],
        "update_ratio": -3 + 0.3 * np.cos(depth) - 0.2 * age + 0.05 * rng.standard_normal(layers),
    }
    histograms = {}
    if step % 500 == 0:
        edges = np.linspace(-0.1, 0.1, 33)
        middles = (edges[1:] + edges[:-1]) / 2
        counts = [
            np.round(1e5 * np.exp(-0.5 * (middles / (0.02 + 0.004 * i)) ** 2)).tolist()
            for i in range(layers)
        ]
        histograms = {"weights": {"edges": edges.tolist(), "counts": counts}}
    yield events.Layers(
        time=time, step=step, every=20, cost=0.006, histograms=histograms,
        stats={name: np.round(values, 6).tolist() for name, values in stats.items()},
    )  # fmt: skip


def write_run(path: Path, **settings: object) -> Path:
    """A run folder at ``path`` with a log, a recipe and the trainer's output."""
    path.mkdir(parents=True, exist_ok=True)
    with EventWriter(path / "events.jsonl") as write:
        for event in recorded_events(**settings):  # type: ignore[arg-type]
            write(event)
    (path / "recipe.toml").write_text('[run]\nname = "small-shakespeare"\n', encoding="utf-8")
    (path / "stdout.log").write_text(
        "device: cuda (H100), bfloat16\n10.8M parameters\ncompiling ... done in 31 s\n",
        encoding="utf-8",
    )
    return path


def write_long_log(path: Path, steps: int) -> Path:
    """A finished run of many steps, quickly: every line in the writer's own form."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    step = np.arange(1, steps + 1)
    loss = (1.4 + 9 * (1 + step / 50) ** -0.5 + 0.05 * rng.standard_normal(steps)).tolist()
    grad = (0.5 + np.abs(rng.standard_normal(steps)) * 0.1).tolist()
    started = events.RunStarted(
        name=path.name, time=START, max_steps=steps, tokens_per_step=16384, n_layer=12
    )
    ended = events.RunEnded(time=START + steps * 0.09, step=steps, reason="finished")
    with (path / "events.jsonl").open("w", encoding="utf-8") as file:
        file.write(events.encode(started) + "\n")
        for k in range(steps):
            file.write(
                f'{{"type":"step","time":{START + (k + 1) * 0.09!r},"step":{k + 1},'
                f'"loss":{loss[k]!r},"lr":{learning_rate(k, steps, 6e-4)!r},'
                f'"grad_norm":{grad[k]!r},"tokens":{(k + 1) * 16384},'
                f'"tokens_per_s":182044.4,"step_s":0.09,"clipped":false,"skipped":false}}\n'
            )
        file.write(events.encode(ended) + "\n")
    return path
