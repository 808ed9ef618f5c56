"""The numbers on pages about alarms and findings: limits of the code that judges, healthy values.

Healthy values are computed when a page is asked for: by theory, for a model of a given shape; from
a matrix that is drawn now; or from a made-up run that is fed to the alarms.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_cli.init.signals import Signals
    from nanogpt_cli.model.config import GPTConfig
    from nanogpt_cli.recipe.sections import Optim
    from nanogpt_cli.schemes import Scheme

TOKENS = 64  # random ones that theory looks at; its cost grows with their square
RUN_STEPS, RUN_VOCABULARY, RUN_END, RUN_SCATTER = 1000, 65, 1.5, 0.05
# Of its machine: bytes of a checkpoint, how many the disk has room for, share of the time for data.
RUN_CHECKPOINT, RUN_DISK, RUN_DATA = 10**9, 20, 0.02
CELLS = 256


@dataclass(frozen=True)
class Model:
    """The model whose numbers are shown, from its configuration alone.

    Attributes:
        config: without the scheme's multipliers.
        scheme: of its initial values.
        label: its name.
        optim: how its recipe trains it; the defaults if ``None``.
        max_steps: of that recipe.
    """

    config: GPTConfig
    scheme: Scheme
    label: str = "GPT-2"
    optim: Optim | None = None
    max_steps: int = 0
    _known: dict[tuple[GPTConfig, str, str, bool], Signals] = field(
        default_factory=dict, repr=False, compare=False
    )

    def std(self, kind: str, scheme: Scheme | None = None) -> float:
        """True standard deviation of a class of tensor in the middle of the model."""
        c, d = self.config, self.config.n_embd
        rows, columns = {"fc": (c.hidden_size, d), "mlp_proj": (d, c.hidden_size),
                         "lm_head": (c.vocab_size, d), "wte": (c.vocab_size, d),
                         "wpe": (c.block_size, d)}.get(kind, (d, d))  # fmt: skip
        law = (scheme or self.scheme).law(kind, self.variables(rows, columns))
        return law.true_std(rows, columns)

    def variables(self, fan_out: int, fan_in: int) -> dict[str, float]:
        """The variables of a scheme's formulas."""
        c = self.config
        return {"d": c.n_embd, "L": c.n_layer, "D": c.head_size, "V": c.vocab_size,
                "T": c.block_size, "l": c.n_layer // 2, "fan_in": fan_in,
                "fan_out": fan_out}  # fmt: skip

    def changed(self, scheme: str = "", **sizes: object) -> Model:
        """This model with another scheme, or with other values of its configuration."""
        from nanogpt_cli import schemes

        chosen = schemes.get(scheme) if scheme else self.scheme
        return replace(self, config=replace(self.config, **sizes), scheme=chosen)  # type: ignore[arg-type]

    def with_scheme(self, scheme: Scheme) -> Model:
        """This model, drawn by another scheme."""
        return replace(self, scheme=scheme)

    def start(self, *, backward: bool = False) -> Signals:
        """Signals before the first step, by theory."""
        from nanogpt_cli.init import theory
        from nanogpt_cli.init.drawing import configure

        key = (self.config, self.scheme.name, self.scheme.formula, backward)
        if key not in self._known:
            config = configure(self.config, self.scheme)
            tokens = theory.random_tokens(config, 1, min(TOKENS, config.block_size), 0)
            self._known[key] = theory.expect(config, self.scheme, *tokens, backward=backward)
        return self._known[key]

    def values(self) -> dict[str, float | str]:
        """What every text may name."""
        c = self.config
        return {"L": c.n_layer, "d": c.n_embd, "H": c.n_head, "T": c.block_size,
                "V": c.vocab_size, "branches": 2 * c.n_layer, "scheme": self.scheme.name,
                "activation": c.activation}  # fmt: skip

    def described(self, language: str = "en") -> str:
        """The model in one line."""
        from nanogpt_cli.units import counted

        c = self.config
        layers, channels = {
            "en": (counted(c.n_layer, "layer"), counted(c.n_embd, "channel")),
            "de": (counted(c.n_layer, "Schicht", "Schichten"),
                   counted(c.n_embd, "Kanal", "Kanälen")),
        }[language]  # fmt: skip
        text = {
            "en": "{}: {} of {}, vocabulary {}, scheme {}",
            "de": "{}: {} mit je {}, Vokabular {}, Schema {}",
        }[language]
        return text.format(self.label, layers, channels, c.vocab_size, self.scheme.name)


@dataclass(frozen=True)
class Shape:
    """The model whose healthy values are shown; the default is GPT-2's, in the middle of its text.

    Attributes:
        n_layer, n_embd: blocks and channels; heads have 64 channels where that divides the width.
        init: name of the scheme.
        given: the model itself, in place of those three.
    """

    n_layer: int = 12
    n_embd: int = 768
    init: str = "gpt2"
    given: Model | None = None

    def model(self) -> Model:
        """GPT-2 in this shape, with nanoGPT's defaults in all else."""
        from nanogpt_cli import schemes
        from nanogpt_cli.model.config import GPTConfig

        if self.given:
            return self.given
        heads = self.n_embd // 64 if self.n_embd % 64 == 0 else 1
        config = GPTConfig(
            self.n_layer, heads, self.n_embd, 1024, 50304, 0.0, bias=False, activation="gelu"
        )
        return Model(config, schemes.get(self.init))


def limits() -> dict[str, float]:
    """Limits of the alarms."""
    from nanogpt_cli.recipe.sections import Optim
    from nanogpt_cli.training.alarms import eval_rules as e
    from nanogpt_cli.training.alarms import judge as a
    from nanogpt_cli.training.alarms import layer_rules as b
    from nanogpt_cli.training.alarms import system_alarms as s

    return {
        "fp16_max": (2 - 2**-10) * 2.0**15, "loss_window": a.LOSS_WINDOW,
        "spike_rise": a.SPIKE_RISE, "spike_sigmas": a.SPIKE_SIGMAS,
        "diverged_steps": a.DIVERGED_STEPS, "diverged_rise": a.DIVERGED_RISE,
        "diverged_sigmas": a.DIVERGED_SIGMAS, "max_clipped": a.MAX_CLIPPED,
        "clipped_window": a.CLIPPED_WINDOW, "stuck_from": a.STUCK_FROM,
        "stuck_window": a.STUCK_WINDOW, "stuck_margin": a.STUCK_MARGIN, "slow": a.SLOW,
        "speed_window": a.SPEED_WINDOW, "update_from": b.UPDATE_FROM,
        "update_low": b.UPDATE_LOW, "update_high": b.UPDATE_HIGH, "max_dead": b.MAX_DEAD,
        "max_logit": b.MAX_LOGIT, "min_entropy": b.MIN_ENTROPY, "max_stream": b.MAX_STREAM,
        "min_gradient": b.MIN_GRADIENT, "overfit_rises": e.OVERFIT_RISES,
        "bad_start": a.BAD_START, "min_logit": b.MIN_LOGIT, "split_gap": e.SPLIT_GAP,
        "split_evals": e.SPLIT_EVALS, "split_window": e.SPLIT_WINDOW, "low_loss": e.LOW_LOSS,
        "max_error": e.MAX_ERROR, "max_error_share": e.MAX_ERROR_SHARE,
        "split_sigmas": e.SPLIT_SIGMAS,
        "disk_checkpoints": s.DISK_CHECKPOINTS, "spare_mib": s.SPARE_BYTES / 2**20,
        "checkpoint_bytes": s.CHECKPOINT_BYTES,
        "max_memory": s.MAX_MEMORY, "starved_gpu": s.STARVED_UTILIZATION,
        "starved_data": s.STARVED_DATA, "default_lr": Optim().lr,
    }  # fmt: skip


def lint_limits() -> dict[str, float]:
    """Limits of the lint."""
    from nanogpt_cli.init import lint_signals as s
    from nanogpt_cli.init.tensor_stats import KS_LIMIT, Z_LIMIT
    from nanogpt_cli.modules.faults import chance, lint_scheme, lint_values, scales
    from nanogpt_cli.schemes.laws import LARGEST_NORMAL

    return {
        "largest_normal": LARGEST_NORMAL, "ks_limit": KS_LIMIT, "z_limit": Z_LIMIT,
        "close": scales.CLOSE,
        "max_growth": s.MAX_GROWTH, "min_branch": s.MIN_BRANCH,
        "min_branch_bare": s.MIN_BRANCH_WITHOUT_NORM, "deviation_note": s.DEVIATION_NOTE,
        "deviation_warn": s.DEVIATION_WARN, "max_first": s.MAX_FIRST_STEP,
        "max_gradient": s.MAX_GRADIENT_RATIO, "max_excess": s.MAX_LOSS_EXCESS,
        "min_share": s.MIN_TOKEN_SHARE, "max_cosine": s.MAX_COSINE, "max_score": s.MAX_SCORE_STD,
        "min_preact": s.MIN_PREACT_VARIANCE, "max_near_zero": s.MAX_NEAR_ZERO,
        "alpha": chance.ALPHA, "max_spread": lint_values.MAX_SPREAD,
        "max_zeros": lint_values.MAX_ZEROS, "max_at_bound": lint_values.MAX_AT_BOUND,
        "max_factor": lint_scheme.MAX_FACTOR, "max_factor_width": lint_scheme.MAX_FACTOR_OF_WIDTH,
    }  # fmt: skip


def quiet_run() -> dict[str, float]:
    """How often each alarm is raised by a made-up run in which nothing is wrong."""
    from nanogpt_cli.run import events
    from nanogpt_cli.run.explained import ALARMS
    from nanogpt_cli.training.alarms.judge import Alarms
    from nanogpt_cli.training.alarms.system_alarms import SystemAlarms

    start, rng, judge = math.log(RUN_VOCABULARY), random.Random(0), Alarms(RUN_VOCABULARY)
    machine = SystemAlarms()
    machine.update(events.Checkpoint(step=0, path="", bytes=RUN_CHECKPOINT))
    raised: Counter[str] = Counter()
    for step in range(1, RUN_STEPS + 1):
        level = RUN_END + (start - RUN_END) * math.exp(-10 * step / RUN_STEPS)
        found = judge.update(
            events.Step(step=step, loss=rng.gauss(level, RUN_SCATTER), lr=1e-3, grad_norm=0.5,
                        tokens=step, tokens_per_s=1e5)
        )  # fmt: skip
        if step % (RUN_STEPS // 10) == 0:
            found += judge.update(events.Eval(step=step, val_loss=level))
            found += machine.update(
                events.System(step=step, seconds=1.0, times={"data": RUN_DATA},
                              memory_used=50, memory_total=100,
                              disk_free=RUN_DISK * RUN_CHECKPOINT,
                              gpus={"0": {"utilization": 1 - RUN_DATA}})
            )  # fmt: skip
        raised.update(alarm.kind for alarm in found if alarm.active)
    sizes = {"steps": RUN_STEPS, "start": start, "end": RUN_END, "scatter": RUN_SCATTER,
             "vocab": RUN_VOCABULARY, "disk": RUN_DISK, "data": RUN_DATA}  # fmt: skip
    return {f"run_{k}": float(v) for k, v in (sizes | {k: raised[k] for k in ALARMS}).items()}


def start_of(shape: Shape) -> dict[str, float]:
    """Signals before the first step, by theory, of a model of a shape."""
    from nanogpt_cli.init.expected import weight_rms
    from nanogpt_cli.recipe.sections import Optim

    model = shape.model()
    config, scheme = model.config, model.scheme
    found = model.start(backward=True)
    D = config.head_size
    branches = (*found.attn_rms, *found.mlp_rms)
    stream, log_v = found.stream_rms, math.log(config.vocab_size)
    rms = weight_rms(config, scheme, 0)
    return {
        "model_layers": config.n_layer, "model_width": config.n_embd, "growth": found.growth,
        "gradient_ratio": found.gradient_ratio, "score_std": max(found.score_std),
        "entropy": min(found.attn_entropy), "dead": max(found.near_zero), "weight_rms": rms,
        "update_ratio": math.log10(Optim().lr / rms) if rms else math.inf,
        "branch": math.sqrt(sum(x * x for x in branches) / len(branches)) / stream[0],
        "first_step": stream[1] / stream[0], "loss": found.loss_any, "log_v": log_v,
        "excess": found.loss_any - log_v, "own_logit": found.own_logit,
        "token_share": found.token_share, "cosine": found.cosine[-1],
        "preact": found.preact_std[0] ** 2, "first_square": stream[0] ** 2,
        "norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "rope_head": D,
        "rope_period": 2 * math.pi * config.rope_theta ** ((D - 2) / D),
    }  # fmt: skip


def drawn() -> dict[str, float]:
    """What the lint sees of a square matrix of std 0.02 that is drawn now."""
    import torch

    from nanogpt_cli.modules.anatomy import Part
    from nanogpt_cli.modules.faults.sketch import sketch

    values = torch.randn(CELLS, CELLS, generator=torch.Generator().manual_seed(0)) * 0.02
    s = sketch(Part("h.0.mlp.c_proj.weight", "mlp_proj", 0), values)
    r, pairs = s.pairs
    rows = (s.row_square / s.row_square.median()).sqrt()
    return {
        "side": CELLS, "cells": s.size, "std": s.std, "kurtosis": s.kurtosis, "reach": s.reach,
        "reach_sigma": s.reach / s.std, "mean_errors": abs(s.mean) / s.std * math.sqrt(s.size),
        "zeros": s.zeros, "at_bounds": s.at_bounds, "rank": s.rank, "sampled": s.sampled,
        "row_correlation": abs(r), "pairs": pairs, "row_low": float(rows.min()),
        "row_high": float(rows.max()), "spread": s.spread, "subnormal": s.subnormal,
        "constant_rows": s.constant_rows,
    }  # fmt: skip


def of(names: Iterable[str], shape: Shape) -> dict[str, float]:
    """The numbers of these names; sources are asked by cost, until all are known."""
    wanted = set(names)
    found: dict[str, float] = {}
    sources: tuple[Callable[[], dict[str, float]], ...] = (
        limits, quiet_run, lint_limits, drawn, lambda: start_of(shape),
    )  # fmt: skip
    for source in sources:
        if wanted - found.keys():
            found |= source()
    return {name: float(found[name]) for name in wanted}
