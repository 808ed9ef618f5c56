"""What ``--json`` prints, key by key: one object on one line, for other programs to read.

NaN and infinities are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``; what
is unknown is null. Keys may be added; those here stay. This page is generated from the program's
own table, and a test runs the commands and compares their keys with it.
"""

from __future__ import annotations

from typing import Final

_SUMMARY: Final = {
    "run": "its name", "folder": "where it lies", "state": "running, finished, stopped, …",
    "detail": "more on the state", "time": "of the last event, seconds since 1970",
    "parameters": "of the model", "step": "optimizer steps made", "max_steps": "steps planned",
    "tokens": "seen", "loss": "last training loss, nats a token", "lr": "learning rate",
    "grad_norm": "before clipping", "clip_share": "share of steps that were clipped",
    "tokens_per_s": "last measured", "mfu": "share of the device's peak", "eta_s": "seconds left",
    "val_loss": "last evaluation", "best_val_loss": "lowest evaluation",
    "bits_per_byte": "of the last evaluation", "alarms": "raised so far",
    "non_finite_steps": "steps with NaN or infinity", "problems": "unreadable parts of the log",
}  # fmt: skip
_BENCH: Final = {
    "bench": "which one", "time": "when", "version": "of this program", "torch": "its version",
    "machine": "its processor", "cpus": "how many",
}  # fmt: skip

# Command, with the option that changes what it prints -> key -> meaning.
SHAPES: Final[dict[str, dict[str, str]]] = {
    "prepare": {
        "format": "of the manifest", "version": "of that format", "tool": "that wrote it",
        "name": "of the set", "tokenizer": "kind, size, fingerprint", "dtype": "of a token",
        "split": "rule and share", "train": "file, tokens, sha256", "val": "the same",
        "sources": "what was read", "request": "what was asked for", "receipt": "what was measured",
    },
    "prepare --list": {"sets": "the named sets: name, about, size, tokens, licence, origin, …"},
    "train": {
        "run": "its folder", "step": "the last one", "reason": "why it ended: finished, stopped, …",
        "best_val_loss": "lowest evaluation", "checkpoint": "the newest one's folder",
        "seconds": "of training",
    },
    "train --lr-find": {
        "suggested": "learning rate", "diverged": "where the loss ran away, or null",
        "curve": "pairs of learning rate and loss",
    },
    "watch": _SUMMARY,
    "sample": {
        "source": "the model", "step": "of its checkpoint", "seed": "repeats these texts",
        "sampling": "temperature, top_k, …", "context": "slide or roll",
        "samples": "prompt, text, tokens and log-probabilities of each", "new_tokens": "drawn",
        "seconds": "for all", "first_token_s": "until the first", "tokens_per_s": "over all",
    },
    "eval": {
        "model": "what was evaluated", "data": "the set's folder", "split": "train or val",
        "step": "of the checkpoint", "tokens": "predicted", "loss": "nats a token",
        "perplexity": "exp(loss)", "bits_per_byte": "of the text",
        "by_position": "loss at each position in the context",
    },
    "init-inspect": {
        "model": "its shape", "scheme": "of initialisation", "size": "parameters, memory, FLOPs",
        "expected": "by theory", "measured": "on drawn weights, or null",
        "weights": "each tensor: law and statistics", "verdicts": "level, check, sentence",
    },
    "init-inspect --list": {"schemes": "name, formula and source of each"},
    "init-inspect --compare": {"rows": "each variant: expected and measured"},
    "runs": {"runs": "for each run what watch --json says"},
    "runs diff": {"runs": "the two names", "values": "key -> the two values that differ"},
    "replay": {
        "step": "made again", "source": "of the weights", "passes": "each way of making it",
        "weights": "tensors that were not finite", "windows": "of the batch",
        "verdict": "a sentence",
    },
    "export": {
        "artefacts": "paths written", "passed": "no check failed", "checks": "one a format",
    },
    "import": {
        "run": "the new run's folder", "step": "steps it has seen", "notes": "sentences",
        "model": "its shape",
    },
    "recipes": {"recipes": "name, path, what, machine, minutes, loss of each"},
    "recipe show": {"recipe": "as asked for", "values": "key -> value and from (its origin)"},
    "recipe check": {
        "recipe": "as asked for", "valid": "true", "keys_set": "that are no defaults",
        "notes": "sentences",
    },
    "recipe diff": {"recipes": "the two names", "values": "key -> the two values that differ"},
    "recipe new": {
        "file": "written, or null", "toml": "its text", "notes": "sentences",
        "next": "command that trains it",
    },
    "recipe from-nanogpt": {
        "file": "written, or null", "toml": "its text", "notes": "what has no equivalent",
        "next": "command that trains it",
    },
    "plan": {
        "recipe": "as asked for", "parameters": "of the model", "flops_per_token": "to train",
        "tokens_per_step": "of all processes", "tokens": "of the run", "epochs": "of the data",
        "flops": "of the run", "memory": "bytes by component", "available": "bytes planned for",
        "largest_micro_batch": "that fits", "checkpoint_bytes": "each", "disk_bytes": "of the run",
        "disk_free": "bytes", "flops_per_second": "of one process", "seconds": "of the run",
        "fits": "memory and disk suffice",
    },
    "data": {"sets": "folder -> manifest, as of prepare"},
    "data inspect": {
        "folder": "of the set", "verified": "both sha256 hold", "manifest": "as of prepare",
        "windows": "split, start and text", "histogram": "token id -> count",
        "entropy_bits": "a token, of the frequencies",
    },
    "verify-resume": {
        "recipe": "as asked for", "equal": "bit by bit", "steps": "of both runs",
        "stopped": "after this step", "tensors": "compared", "losses": "compared",
        "evaluations": "compared", "differing": "the first that differs, or empty",
    },
    "bench train": {
        **_BENCH, "shape": "of the model", "batch": "sequences and context of a step",
        "optimizer": "of both", "parameters": "of the model", "device": "it ran on",
        "precision": "of ours", "notes": "on compiling", "load": "at the start",
        "loops": "ours, then nanoGPT's: seconds a step (median, 10 %, 90 %), steps/s, tokens/s",
        "ratio": "nanoGPT's seconds a step over ours, or null", "turn_ratios": "turn by turn",
        "flops_per_s": "reached, by 6N + 12LdT", "peak_flops": "of the device, or null",
        "matmul_flops": "measured where the peak is unknown",
        "data_share": "of a step, for fetching its tokens",
    },
    "bench train --growth": {
        **_BENCH, "growth": "each row: what is varied, parameters, tokens/s, bytes, seconds",
        "recipe": "what was varied",
    },
    "bench race": {
        **_BENCH, "laps": "each program: seconds, cpu_seconds, tokens, val_loss, reached",
        "target": "validation loss to reach", "ratio": "our mean seconds over nanoGPT's, or null",
        "load": "at the start",
    },
    "bench startup": {
        **_BENCH, "seconds": "medians", "spread": "least and most", "limits": "in seconds",
        "within": "whether each keeps its limit", "load": "at the start",
    },
    "bench prepare": {
        "prepare": "each way: threads, bytes, tokens, seconds", "load": "at the start",
        "peak_memory_bytes": "of this process",
    },
    "bench inspect": {
        "shape": "layers, heads, channels, vocabulary, tokens",
        "rows": "each way: cpu_s, wall_s, peak_mib",
    },
    "bench sample": {
        "source": "the model", "prompt_tokens": "of the prompt", "new_tokens": "drawn",
        "samples": "in a batch", "device": "it ran on", "threads": "of the CPU",
        "cached": "seconds and tokens/s with the cache", "naive": "the same without",
        "naive_lengths": "contexts it was timed at", "rivals": "tokens/s of other programs",
        "rival_threads": "CPU threads they used",
        "cache_bytes": "keys and values", "weight_bytes": "as stored",
        "packed_bytes": "their copy laid out for few rows, 0 without one",
        "speedup": "cached over naive", "speedup_over": "each rival",
        "peak_bytes": "of this process",
    },
    "bench tui": {
        "loadavg": "at the start", "cpus": "of the machine", "chart_update_ms": "CPU time",
        "open": "a long run: first frame, all of it, memory",
    },
    "doctor": {
        "ok": "nothing essential is broken", "problems": "sentences",
        "versions": "library -> version, empty if missing", "devices": "name, memory, TFLOP/s",
        "threads": "cores and settings", "compile": "whether torch.compile works, or why not",
        "caches": "folders that grow, with bytes", "disk": "free bytes and whether writable",
        "terminal": "size, colours, encoding", "extras": "what each brings, whether installed",
    },
    "cache list": {"cache": "its folder", "bytes": "in all", "entries": "kind, name, path, bytes"},
    "cache clear": {"deleted": "names", "bytes": "freed"},
    "docs": {"pages": "topic, title and path of each; with TOPIC that page alone, and its text"},
}  # fmt: skip


def markdown() -> str:
    """The page ``docs/json.md``."""
    text = (__doc__ or "").replace("``", "`").split("\n\n")
    lines = ["# JSON: what `--json` prints", "", text[0], "", text[1].replace("\n", " ").strip()]
    for command, keys in SHAPES.items():
        lines += ["", f"## `nanogpt {command}`", "", "| Key | What |", "|---|---|"]
        lines += [f"| `{key}` | {meaning} |" for key, meaning in keys.items()]
    return "\n".join(lines) + "\n"
