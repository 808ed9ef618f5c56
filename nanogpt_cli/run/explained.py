"""Which page of ``nanogpt explain`` tells what an alarm means."""

from __future__ import annotations

ALARMS = (
    "non_finite", "bad_start", "loss_spike", "divergence", "always_clipped", "stuck", "slow",
    "update_ratio", "frozen", "dead_units", "attention_logits", "no_attention",
    "entropy_collapse", "activation_growth", "vanishing_gradient", "overfitting", "split_gap",
    "low_loss", "small_validation", "disk_low", "memory_near_limit", "gpu_starved",
)  # fmt: skip


def topic(kind: str) -> str:
    """An alarm's kind as the name of its page, such as ``dead-units``."""
    return kind.replace("_", "-")


def command(kind: str) -> str:
    """The command that explains a kind of alarm; empty for one of another program's log."""
    return f"nanogpt explain {topic(kind)}" if kind in ALARMS else ""
