"""An alarm about the loss names what left its band before the loss did, and nothing otherwise."""

from __future__ import annotations

import pytest

from nanogpt_cli.run import events
from nanogpt_cli.training.causes.live import Origin


@pytest.mark.parametrize("grows", [True, False])
def test_the_alarm_names_the_statistic_and_layer_that_left_first(grows: bool) -> None:
    origin = Origin()
    for step in range(1, 502):
        origin.note(events.Step(
            step=step, loss=2.5 + 0.01 * (step % 3) + 3.0 * (step == 501), lr=1e-3,
            grad_norm=1.0 + 0.1 * (step % 2), tokens=step, tokens_per_s=None,
        ))  # fmt: skip
        if step % 10 == 0:
            logit = 40.0 if grows and step >= 480 else 8.0
            origin.note(events.Layers(step=step, stats={"attn_logit_max": [8.0, logit]}))
    alarm = events.Alarm(step=501, kind="loss_spike", severity="error", message="loss 5.5")
    first = "; first: largest attention logit, layer 1, at step 480" if grows else ""
    assert origin.named(alarm).message == f"loss 5.5{first}"
    other = events.Alarm(step=501, kind="slow", severity="info", message="m")
    assert origin.named(other) is other
