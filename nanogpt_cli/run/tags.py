"""Which tags of other training programs are which of our metrics."""

from __future__ import annotations

import re
from collections.abc import Collection

# Metric -> names in order of preference, as ``_plain`` writes them: our own sink, the Trainer of
# Hugging Face, Lightning, nanoGPT, LitGPT, torchtitan, Megatron-LM, Keras.
_NAMES = {
    "loss": "train_loss training_loss loss_train loss_training train_loss_step loss lm_loss "
    "total_loss train_total_loss loss_metrics_global_avg_loss global_avg_loss train_batch_loss "
    "batch_loss train_loss_epoch epoch_loss",
    "val_loss": "val_loss valid_loss validation_loss eval_loss loss_val loss_valid loss_validation "
    "loss_eval lm_loss_validation validation_metrics_global_avg_loss val_loss_epoch "
    "evaluation_loss_vs_iterations test_loss loss_test",
    "bits_per_byte": "val_bits_per_byte eval_bits_per_byte val_bpb eval_bpb bits_per_byte bpb",
    "lr": "lr train_lr learning_rate train_learning_rate optim_lr charts_learning_rate",
    "grad_norm": "grad_norm train_grad_norm gradient_norm train_gradient_norm "
    "grad_2_0_norm_total grad_2_norm_total",
    "tokens": "train_tokens tokens total_tokens tokens_seen n_tokens_seen train_total_tokens "
    "num_input_tokens_seen train_num_input_tokens_seen consumed_tokens",
    "tokens_per_s": "train_tokens_per_s tokens_per_s tokens_per_sec train_tokens_per_sec "
    "tokens_per_second train_tokens_per_second train_tok_per_sec tps throughput_tps",
}
_RATE = re.compile(r"lr_[a-z]\w*")  # Lightning's monitor: lr-AdamW, lr-AdamW/pg1
_LAYER = re.compile(r"layers/([^/]+)/(\d{1,4})")


def metrics(tags: Collection[str]) -> dict[str, str]:
    """The tag that is each of our metrics; metrics that none of the tags is are left out."""
    plain: dict[str, str] = {}
    for tag in sorted(tags):
        plain.setdefault(_plain(tag), tag)
    found = {}
    for metric, names in _NAMES.items():
        if name := next((name for name in names.split() if name in plain), None):
            found[metric] = plain[name]
    if "lr" not in found and (rates := [name for name in plain if _RATE.fullmatch(name)]):
        found["lr"] = plain[rates[0]]
    return found


def layer(tag: str) -> tuple[str, int] | None:
    """Statistic and layer of a tag that our own sink wrote; ``None`` for any other."""
    match = _LAYER.fullmatch(tag)
    return (match.group(1), int(match.group(2))) if match else None


def _plain(tag: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", tag.lower()).strip("_")
