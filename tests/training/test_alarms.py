"""Alarms over synthetic event streams: what must raise, what must not, and how they clear."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from nanogpt_cli.run.events import Alarm, Eval, Event, Histograms, Layers, RunStarted, Step
from nanogpt_cli.training.alarms.judge import Alarms


def step(number: int, loss: float = 3.0, **keys: Any) -> Step:
    values = {"lr": 1e-3, "grad_norm": 1.0, "tokens": number, "tokens_per_s": 1000.0} | keys
    return Step(step=number, loss=loss, **values)


def alarms(found: Alarms, stream: list[Event]) -> list[Alarm]:
    return [alarm for event in stream for alarm in found.update(event)]


def kinds(found: list[Alarm]) -> list[tuple[str, bool]]:
    return [(alarm.kind, alarm.active) for alarm in found]


def healthy(count: int, start: int = 1, seed: int = 0) -> list[Event]:
    """A noisy, falling loss."""
    rng = random.Random(seed)
    return [
        step(n, 1.5 + 2.5 * math.exp(-n / 200) + rng.gauss(0, 0.1))
        for n in range(start, start + count)
    ]


def layers(number: int, **stats: list[float]) -> Layers:
    return Layers(step=number, stats=stats)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_silent(seed: int) -> None:
    stream = healthy(3000, seed=seed)
    stream += [
        layers(n, update_ratio=[-3.0, -2.8], dead=[0.0, 0.2], attn_logit_max=[8.0, 9.0],
               attn_entropy=[0.8, 0.5], resid_rms=[0.5, 2.0], grad_norm=[0.3, 0.2])
        for n in range(3000, 3100)
    ]  # fmt: skip
    stream += [Eval(step=n, val_loss=2 - n / 1e4) for n in range(3100, 3110)]
    assert alarms(Alarms(vocab_size=65), stream) == []


def test_a_spike_raises_at_once_and_clears_when_it_is_over() -> None:
    found = alarms(Alarms(vocab_size=65), [*healthy(200), step(201, 9.0), *healthy(5, 202)])
    assert kinds(found) == [("loss_spike", True), ("loss_spike", False)]
    assert found[0].step == 201
    assert found[0].severity == "error"
    assert found[0].advice


@pytest.mark.parametrize("keys", [{"loss": math.nan}, {"loss": math.inf}, {"grad_norm": math.inf}])
def test_non_finite_raises_once(keys: dict[str, float]) -> None:
    stream = [*healthy(5), *(step(n, **keys) for n in range(6, 20))]
    assert kinds(alarms(Alarms(vocab_size=65), stream)) == [("non_finite", True)]


def test_overflows_of_the_loss_scaler_are_no_alarm() -> None:
    start = RunStarted(name="r", precision="fp16")
    found = Alarms(vocab_size=65)
    assert alarms(found, [start, step(1, grad_norm=math.inf)]) == []
    assert kinds(alarms(found, [step(2, math.nan)])) == [("non_finite", True)]


def test_a_loss_that_stays_at_ln_v() -> None:
    stream: list[Event] = [step(n, math.log(65) - 0.02) for n in range(1, 300)]
    found = alarms(Alarms(vocab_size=65), stream)
    assert kinds(found) == [("stuck", True)]
    assert found[0].step == 202
    assert "4.17" in found[0].message


def test_gradients_that_are_always_clipped() -> None:
    stream: list[Event] = [step(n, clipped=True) for n in range(1, 300)]
    assert kinds(alarms(Alarms(vocab_size=65), stream)) == [("always_clipped", True)]


def test_throughput_that_falls() -> None:
    stream: list[Event] = [step(n) for n in range(1, 300)]
    stream += [step(n, tokens_per_s=300.0) for n in range(300, 330)]
    assert kinds(alarms(Alarms(vocab_size=65), stream)) == [("slow", True)]


@pytest.mark.parametrize(
    ("name", "bad", "kind"),
    [
        ("update_ratio", -0.5, "update_ratio"),
        ("update_ratio", -6.0, "update_ratio"),
        ("dead", 0.9, "dead_units"),
        ("attn_logit_max", 500.0, "attention_logits"),
        ("attn_entropy", 0.001, "entropy_collapse"),
    ],
)
def test_layer_alarms_name_the_layer_with_hysteresis(name: str, bad: float, kind: str) -> None:
    good = {"update_ratio": -3.0, "dead": 0.0, "attn_logit_max": 5.0, "attn_entropy": 0.6}[name]
    found = Alarms(vocab_size=65)
    row = [good, good, bad, good]
    assert alarms(found, [layers(500, **{name: row}), layers(510, **{name: row})]) == []
    (raised,) = alarms(found, [layers(520, **{name: row})])
    assert (raised.kind, raised.layer, raised.active) == (kind, 2, True)
    assert "layer 2" in raised.message
    assert raised.advice
    flicker = [layers(530, **{name: [good] * 4}), layers(540, **{name: row})] * 3
    assert alarms(found, list(flicker)) == []
    calm = [layers(n, **{name: [good] * 4}) for n in (600, 610, 620, 630)]
    (cleared,) = alarms(found, list(calm))
    assert (cleared.kind, cleared.layer, cleared.active) == (kind, 2, False)


def test_early_updates_may_be_large() -> None:
    stream: list[Event] = [layers(n, update_ratio=[-0.5]) for n in range(10, 90, 10)]
    assert alarms(Alarms(vocab_size=65), stream) == []


def test_growth_is_judged_against_the_expectation_at_the_start() -> None:
    start = RunStarted(name="r", expected={"resid_rms": [0.1, 0.2]})
    rows: list[Event] = [layers(n, resid_rms=[5.0, 100.0]) for n in (100, 110, 120)]
    (raised,) = alarms(Alarms(vocab_size=65), [start, *rows])
    assert (raised.kind, raised.layer) == ("activation_growth", 1)
    assert raised.value == pytest.approx(500)
    assert alarms(Alarms(vocab_size=65), rows) == []


def test_gradient_vanishing_by_depth() -> None:
    rows: list[Event] = [layers(n, grad_norm=[1e-6, 1e-3, 1.0]) for n in (100, 110, 120)]
    (raised,) = alarms(Alarms(vocab_size=65), rows)
    assert (raised.kind, raised.layer) == ("vanishing_gradient", 0)


def test_overfitting_needs_training_loss_to_fall_meanwhile() -> None:
    def stream(falling: bool) -> list[Event]:
        made: list[Event] = []
        for round_ in range(5):
            level = 2.0 - 0.2 * round_ if falling else 2.0 + 0.2 * round_
            made += [step(200 * round_ + n, level) for n in range(1, 201)]
            made.append(Eval(step=200 * round_ + 200, val_loss=2.0 + 0.1 * round_))
        return made

    found = [a for a in alarms(Alarms(vocab_size=65), stream(True)) if a.kind == "overfitting"]
    assert [(a.step, a.active) for a in found] == [(800, True)]
    assert "best was 2.000 at step 200" in found[0].message
    again = alarms(Alarms(vocab_size=65), stream(False))
    assert "overfitting" not in [a.kind for a in again]


def test_histograms_at_evaluations_do_not_calm_an_alarm_of_a_layer() -> None:
    """They come between two observations of the layers, and say nothing about them."""
    found = Alarms(vocab_size=65)
    stream: list[Event] = []
    for number in range(1, 5):
        stream += [
            layers(200 * number, dead=[0.9]),
            Histograms(step=250 * number, histograms={"weights": {"edges": [], "counts": []}}),
            Layers(
                step=250 * number, stats={}, histograms={"weights": {}}
            ),  # as older logs have it
        ]
    assert kinds(alarms(found, stream)) == [("dead_units", True)]


def test_the_scatter_of_a_diverged_loss_says_nothing_about_the_split() -> None:
    def raised(loss: float, error: float) -> list[str]:
        event = Eval(step=50, val_loss=loss, std_error=error)
        return [alarm.kind for alarm in Alarms(vocab_size=65).update(event)]

    assert raised(46.5, 0.14) == []
    assert raised(2.6, 0.06) == ["small_validation"]
    assert raised(46.5, 0.6) == ["small_validation"]


def test_a_loss_that_falls_from_far_above_ln_v_is_not_stuck() -> None:
    """As in a loop whose loss is a sum over tokens: it is large, and falls."""
    falls = alarms(Alarms(vocab_size=65), [step(n, 1100.0 - 2 * n) for n in range(1, 300)])
    assert "stuck" not in {alarm.kind for alarm in falls}
    stays = alarms(Alarms(vocab_size=65), [step(n, 9.0) for n in range(1, 300)])
    assert "stuck" in {alarm.kind for alarm in stays}
