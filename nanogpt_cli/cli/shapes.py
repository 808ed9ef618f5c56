"""The keys that ``--json`` prints: one object on one line, for other programs to read.

NaN and infinities are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``; what
is unknown is null. Keys may be added; those here stay. This page is generated from the program's
own table, and a test runs the commands and compares their keys with it.
"""

from __future__ import annotations

from typing import Final

_SUMMARY: Final = {
    "run": "name of the run", "folder": "path of its folder",
    "state": "running, finished, stopped, …", "detail": "more about the state",
    "time": "time of the last event, in seconds since 1970",
    "parameters": "number of parameters of the model",
    "begun_from": "trained weights that the run began with (train --from); empty without any",
    "step": "optimizer steps made",
    "max_steps": "optimizer steps planned", "tokens": "tokens trained on",
    "loss": "last training loss, in nats per token", "lr": "learning rate of the last step",
    "grad_norm": "gradient norm of the last step, before clipping; null if it was not measured",
    "clip_share": "share of steps whose gradient was clipped",
    "tokens_per_s": "tokens per second, last measured",
    "mfu": "share of the devices' peak FLOP/s that is used", "eta_s": "seconds left",
    "val_loss": "validation loss of the last evaluation",
    "best_val_loss": "lowest validation loss so far",
    "bits_per_byte": "bits per byte of text, of the last evaluation",
    "alarms": "alarms that are active: step, kind, layer, message, advice",
    "system": "the newest sample of the machine, with run_times, seconds of the run by part; null "
    "if there is none",
    "non_finite_steps": "number of steps with a NaN or an infinity",
    "problems": "parts of the log that cannot be read",
    "note": "the user's note", "tags": "the user's tags",
}  # fmt: skip
_NOTES: Final = {
    "run": "name of the run", "folder": "path of its folder",
    "note": "the user's note", "tags": "the user's tags",
}  # fmt: skip
_TRAIN: Final = {
    "run": "path of the run's folder", "step": "the last step",
    "reason": "why it ended: finished, stopped, …",
    "best_val_loss": "lowest validation loss", "checkpoint": "folder of the newest checkpoint",
    "seconds": "seconds of training",
}  # fmt: skip
_EVAL: Final = {
    "model": "the model", "data": "folder of the data set", "split": "train or val",
    "step": "step of the checkpoint", "tokens": "number of tokens predicted",
    "loss": "mean loss in nats per token",
    "std_error": "standard error of loss, from the scatter of the windows' means, or null",
    "perplexity": "exp(loss)",
    "bits_per_byte": "loss in bits per byte of text, at the average bytes per token of the split",
    "by_position": "loss at each position in the context",
}  # fmt: skip
_CERTIFICATE: Final = {
    "certificate": "passed; sources, with their sha256; reading, the options of prepare that say "
    "how they are read; bytes and tokens of the split, each with a sha256; end_of_text, "
    "unscored_tokens, unscored_bytes; lost, with the bytes that decoding does not give back, by "
    "cause; difference, the first place where the proof fails, or null. If it fails, loss and "
    "bits_per_byte are null",
}  # fmt: skip
_BENCH: Final = {
    "bench": "name of the benchmark", "time": "when it was run", "version": "of this program",
    "torch": "version of PyTorch", "machine": "name of the processor", "cpus": "number of CPUs",
}  # fmt: skip

# Command, with the option that changes what it prints -> key -> meaning.
SHAPES: Final[dict[str, dict[str, str]]] = {
    "prepare": {
        "format": "name of the manifest's format", "version": "version of that format",
        "tool": "program that wrote it", "name": "name of the set",
        "tokenizer": "kind, size and fingerprint of the tokenizer",
        "dtype": "number format of a token", "split": "rule and share of the validation split",
        "train": "file, number of tokens and sha256 of the training split",
        "val": "the same of the validation split", "sources": "files that were read",
        "request": "what was asked for", "receipt": "what was measured of the text",
    },
    "prepare --list": {
        "sets": "the named sets: name, about, size, tokens, licence, origin, …",
    },
    "train": _TRAIN,
    "train --certify": {
        **_TRAIN, "bits_per_byte": "of the best weights on the validation split",
        "certificate": "as of eval --certify; null if the run was stopped or failed",
    },
    "train --lr-find": {
        "suggested": "suggested learning rate",
        "diverged": "learning rate at which the loss diverged, or null",
        "curve": "pairs of learning rate and loss",
    },
    "watch": _SUMMARY,
    "sample": {
        "source": "the model", "step": "step of its checkpoint",
        "seed": "seed that repeats these texts", "sampling": "temperature, top_k, …",
        "context": "slide or roll",
        "samples": "prompt, text, tokens and log-probabilities of each sample",
        "new_tokens": "number of tokens drawn", "seconds": "seconds for all of them",
        "first_token_s": "seconds to the first token",
        "tokens_per_s": "tokens per second over all samples",
    },
    "eval": _EVAL,
    "eval --certify": {
        **_EVAL, "bits_per_byte": "loss in bits per byte of the tokens that were predicted",
        **_CERTIFICATE,
    },
    "init-inspect": {
        "model": "shape of the model", "scheme": "initialisation scheme",
        "size": "parameters, memory, FLOPs", "expected": "signals and loss by theory",
        "measured": "the same measured on drawn weights, or null",
        "dropout_factors": "stream RMS in training over that in evaluation, by depth",
        "weights": "law and statistics of each tensor",
        "spectral": "with --all, the spectral norm of each matrix and Muon's relative step",
        "verdicts": "level, check and sentence of each verdict",
    },
    "init-inspect --from": {
        "module": "label, class, parameters and vocabulary of a module of another architecture",
        "structure": "channels, blocks, writers, norms, and the role of each part of a parameter",
        "trained": "whether its weights are trained",
        "expected": "signals and loss by theory, or null",
        "unclaimed": "why there is no theory, or what it leaves out",
        "measured": "signals and loss", "weights": "statistics of each matrix",
        "verdicts": "level, check and sentence of each verdict",
    },
    "init-inspect --coord-check": {
        "over": "width or depth", "scales": "the widths or depths", "names": "what was watched",
        "size": "RMS of each by model and step", "change": "RMS of the change since step 0",
        "losses": "by model and step",
        "exponents": "of width or depth, of each size and change, with what theory allows",
        "transfers": "whether all exponents are right",
    },
    "init-inspect --warmup": {
        "lr": "learning rate of the recipe", "warmup_steps": "of the recipe",
        "below": "whether lr is below the limit",
        "limit": "largest learning rate that needs no warmup",
        "sharpness": "preconditioned sharpness, Adam's second moment of eight batches",
        "limit_first_step": "the limit with that of one batch",
        "sharpness_first_step": "the sharpness with that of one batch",
    },
    "init-inspect --list": {"schemes": "name, formula and source of each scheme"},
    "init-inspect --compare": {"rows": "expected and measured values of each variant"},
    "runs": {"runs": "what watch --json prints, for each run"},
    "runs note": _NOTES,
    "runs tag": _NOTES,
    "runs diff": {
        "runs": "names of the two runs", "values": "each key that differs, with its two values",
    },
    "runs plot": {
        "metric": "what was drawn", "x": "step, tokens or time",
        "smoothing": "weight of the past in the moving average; 0 without one",
        "band": "range, sd or none",
        "curves": "label, runs, diverged, steps and theory of each curve, and its points: x, "
        "mean, low and high",
    },
    "why": {
        "run": "path of the run's folder", "step": "the step that is explained; null if none is",
        "kind": "non_finite, loss_spike, divergence, bad_start, an alarm's kind, or asked",
        "message": "what the log says of it", "onset": "first step whose loss left its band",
        "chain": "statistic, layer, step, value and usual value of all that left its band",
        "replay": "start; first and equal, the steps with the bits of the log; differs, since "
        "which step not; largest difference; why; problem, why there are no trials",
        "window": "first and last step of the comparison, the run's own excess over the healthy "
        "course in nats, and where the healthy course comes from",
        "trials": "kind, change, sets, skip, loss, effect, steps and cures of each, best first",
        "untried": "changes that the budget left no time for",
        "refused": "changes that cannot be made, each with its reason",
        "documents": "offset, loss, share of the gradient, text, file and place of the step's "
        "sequences, worst first", "batch": "loss of the step's batch, of others, and the excess",
        "fix": "command, and changes: key -> value now and then; null without a cure",
        "verdict": "the finding as a sentence", "seconds": "seconds that it took",
    },
    "replay": {
        "step": "the step that was repeated", "source": "where its weights came from",
        "passes": "loss, gradient norm and first bad tensor of each way to compute the step",
        "weights": "weights that were not finite before the step",
        "windows": "first token of each window whose own loss is not finite",
        "verdict": "the finding as a sentence",
    },
    "export": {
        "artefacts": "paths that were written",
        "not_exported": "targets that are impossible, each with its reason",
        "passed": "whether every file was run and is right; null if one was not run",
        "checks": "the check of each format",
    },
    "import": {
        "run": "path of the new run's folder", "step": "steps the model has been trained for",
        "notes": "remarks as sentences", "model": "shape of the model",
    },
    "recipes": {"recipes": "name, path, what, machine, minutes and loss of each recipe"},
    "recipe show": {
        "recipe": "the recipe as it was asked for",
        "values": "each key with its value, and from: where the value comes from",
    },
    "recipe check": {
        "recipe": "the recipe as it was asked for", "valid": "true",
        "keys_set": "keys that the recipe sets",
        "home": "gpt2, llama, qwen2 or qwen3, whose files hold the model exactly; else null",
        "notes": "remarks as sentences",
    },
    "recipe diff": {
        "recipes": "names of the two recipes",
        "values": "each key that differs, with its two values",
    },
    "recipe new": {
        "file": "path of the file written, or null", "toml": "text of the recipe",
        "notes": "remarks as sentences", "next": "the command that trains it",
    },
    "recipe from-nanogpt": {
        "file": "path of the file written, or null", "toml": "text of the recipe",
        "notes": "settings that have no equivalent", "next": "the command that trains it",
    },
    "plan": {
        "recipe": "the recipe as it was asked for",
        "home": "gpt2, llama, qwen2 or qwen3, whose files hold the model exactly; else null",
        "parameters": "number of parameters",
        "flops_per_token": "FLOPs to train on one token",
        "tokens_per_step": "tokens in a step, of all processes",
        "tokens": "tokens in the whole run", "epochs": "passes over the data",
        "flops": "FLOPs of the whole run", "memory": "bytes of memory by component",
        "available": "bytes of memory that were planned for",
        "largest_micro_batch": "largest micro-batch that fits",
        "checkpoint_bytes": "bytes of one checkpoint", "disk_bytes": "bytes of the run on disk",
        "disk_free": "bytes free on disk", "flops_per_second": "FLOP/s of all processes",
        "seconds": "seconds of the whole run", "fits": "whether memory and disk suffice",
        "estimate": "with --gpu: gpu, gpus, parts of a step (flops, bytes and seconds of each), "
        "step_seconds, tokens_per_s, mfu and gpu_hours, all estimated; else null",
    },
    "data": {"sets": "each folder with its manifest, as prepare prints it"},
    "data inspect": {
        "folder": "folder of the set", "verified": "whether both sha256 are right",
        "manifest": "the manifest, as prepare prints it",
        "windows": "split, start and text of sample windows",
        "histogram": "how often each token id occurs",
        "entropy_bits": "entropy of the token frequencies, in bits per token",
    },
    "verify-resume": {
        "recipe": "the recipe as it was asked for",
        "equal": "whether both runs are equal bit by bit",
        "steps": "steps of both runs", "stopped": "step after which one of them was stopped",
        "tensors": "number of tensors compared", "losses": "number of losses compared",
        "evaluations": "number of evaluations compared",
        "differing": "the first that differs, or an empty string",
    },
    "bench train": {
        **_BENCH, "shape": "shape of the model", "batch": "sequences and context of a step",
        "optimizer": "optimizer of both programs", "parameters": "number of parameters",
        "device": "device it ran on", "precision": "number format of our run",
        "notes": "remarks on compiling", "load": "load of the machine at the start",
        "loops": "ours, then nanoGPT's: seconds per step (median, 10 %, 90 %), steps/s, tokens/s",
        "ratio": "nanoGPT's seconds per step over ours, or null",
        "turn_ratios": "the same ratio turn by turn",
        "flops_per_s": "FLOP/s reached, by 6N + 12LdT",
        "peak_flops": "peak FLOP/s of the device, or null",
        "matmul_flops": "FLOP/s of matrix products, measured where the peak is unknown",
        "data_share": "share of a step that is spent on fetching its tokens",
    },
    "bench train --growth": {
        **_BENCH,
        "growth": "of each row: what is varied, parameters, tokens/s, bytes, seconds",
        "recipe": "the recipe that was varied",
    },
    "bench race": {
        **_BENCH, "laps": "of each program: seconds, cpu_seconds, tokens, val_loss, reached",
        "target": "validation loss to reach", "ratio": "our mean seconds over nanoGPT's, or null",
        "load": "load of the machine at the start",
    },
    "bench startup": {
        **_BENCH, "seconds": "median seconds of each command",
        "spread": "least and most seconds of each", "limits": "limit of each in seconds",
        "within": "whether each keeps its limit", "load": "load of the machine at the start",
    },
    "bench prepare": {
        "prepare": "of each method: threads, bytes, tokens, seconds",
        "load": "load of the machine at the start", "peak_memory_bytes": "peak of this process",
    },
    "bench inspect": {
        "shape": "layers, heads, channels, vocabulary, tokens",
        "rows": "of each method: cpu_s, wall_s, peak_mib",
    },
    "bench sample": {
        "source": "the model", "prompt_tokens": "tokens of the prompt",
        "new_tokens": "tokens drawn", "samples": "samples in a batch",
        "device": "device it ran on", "threads": "CPU threads",
        "cached": "seconds and tokens/s with the cache", "naive": "the same without the cache",
        "naive_lengths": "contexts at which it was timed", "rivals": "tokens/s of other programs",
        "rival_threads": "CPU threads they used", "cache_bytes": "bytes of keys and values",
        "weight_bytes": "bytes of the weights as stored",
        "packed_bytes": "bytes of their copies for decoding, the draft included; 0 without any",
        "speedup": "speed with the cache over speed without",
        "speedup_over": "our speed over that of each other program",
        "peak_bytes": "peak memory of this process",
    },
    "bench tui": {
        "loadavg": "load of the machine at the start", "cpus": "number of CPUs",
        "chart_update_ms": "CPU milliseconds of drawing a chart",
        "overview_update_ms": "CPU milliseconds of drawing and painting all of page Overview",
        "open": "opening a long run: first frame, whole run, memory",
        "keys": "for page_loading, axis_loading, page and axis, milliseconds from a key to its "
        "picture: median and maximum of all (wall), without the dashboard's wait for a processor "
        "(ready), and of its main thread's computing (cpu)",
    },
    "bench gpu": {
        **_BENCH, "device": "cuda or cpu", "tiny": "whether the sizes say nothing about speed",
        "minutes": "time allowed for all items", "seconds": "time taken",
        "passed": "whether no item failed; null while they run",
        "items": "name, about, status (passed, failed, skipped, running), seconds, error, trace, "
        "and parts: name, status, seconds, facts, error, trace",
    },
    "doctor": {
        "ok": "whether nothing essential is broken", "problems": "what is wrong, as sentences",
        "versions": "version of each library, empty if missing",
        "devices": "name, memory and TFLOP/s of each device",
        "threads": "cores and thread settings",
        "compile": "whether torch.compile works, or why not",
        "caches": "folders that grow, with their bytes",
        "disk": "free bytes of each place, and whether it can be written to",
        "terminal": "size, colours and encoding of the terminal",
        "extras": "what each extra brings, and whether it is installed",
    },
    "cache list": {
        "cache": "folder of the cache", "bytes": "bytes in all",
        "entries": "kind, name, path and bytes of each entry",
    },
    "cache clear": {"deleted": "names of what was deleted", "bytes": "bytes freed"},
    "explain": {"topics": "name, kind (concept, alarm, signal or weights) and title of each"},
    "explain init": {
        "name": "the topic; the same keys for every concept", "kind": "concept",
        "question": "what the page answers", "language": "of its texts: en or de",
        "model": "whose numbers they are; empty where they hold for all",
        "paragraphs": "the answer", "table": "rows of cells as shown, the heads first",
        "picture": "title and curves (name, values); null without one",
        "claims": "text, verdict (true, false, half true), why and facts of each",
        "after": "paragraphs below table and picture",
        "actions": "text and command of what shows more",
        "facts": "name, value and unit of every number and name in the texts",
    },
    "explain growth": {
        "name": "the topic; the same keys for every alarm and finding",
        "kind": "alarm, signal or weights", "title": "what is the matter",
        "says": "what it means", "judged": "how it is found, with the limits",
        "causes": "the usual ones", "actions": "text and command of each thing to do",
        "healthy": "how it is where nothing is wrong",
        "facts": "name, value and unit of each number",
    },
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
