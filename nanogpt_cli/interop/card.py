"""The model card: the model, its training, how to run it, and the results of verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import charts, files
from nanogpt_cli.interop import llama
from nanogpt_cli.interop.compare import Check
from nanogpt_cli.interop.llama import AUTO_TOKENIZER
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model import homes
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.version import __version__

CURVES: Final = "curves.svg"
_MOST_POINTS: Final = 600
_MOST_TOKENS: Final = 8
_LABELS: Final = {"train": "training loss", "validation": "validation loss"}

Points = list[tuple[int, float]]


def write(source: Exportable, folder: Path, checks: Sequence[Check] = ()) -> None:
    """Write ``README.md`` and, when the run has a log, ``curves.svg`` into ``folder``."""
    curves = _curves(source)
    if any(curves.values()):
        files.write_text(folder / CURVES, _svg(curves))
    parts = [_front_matter(source), _what(source), _usage(source), _training(source, curves)]
    parts += [_measured(checks), _limits(source)]
    files.write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _front_matter(source: Exportable) -> str:
    tags = f"- {homes.home(source.config) or 'gpt2'}\n- nanogpt-cli"
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags:\n{tags}\n---\n\n# {source.name}"
    )


def _what(source: Exportable) -> str:
    config = source.config
    kind = source.tokenizer.kind if source.tokenizer else "none"
    rows = [
        ("parameters", f"{source.weights.nbytes // 4:,}"), ("layers", config.n_layer),
        ("heads", _heads(config)), ("channels", config.n_embd), ("context", config.block_size),
        ("vocabulary", f"{config.vocab_size:,} ({kind})"), ("activation", config.activation),
        ("biases", _biases(config)),
    ]  # fmt: skip
    title = homes.TITLES[homes.home(config) or "gpt2"]
    notes = [f"A {title} language model, exported by nanogpt-cli {__version__}.", "", *_table(rows)]
    if source.weights.original.multipliers != config.multipliers:
        notes += ["", "It was trained with signal multipliers, which are folded into the weights."]
    return "\n".join(notes)


def _heads(config: GPTConfig) -> str:
    shared = f", {config.kv_heads} of keys and values" if config.n_kv_head else ""
    return f"{config.n_head}{shared}"


def _biases(config: GPTConfig) -> str:
    if config.bias == "qkv":
        return "of queries, keys and values"
    if config.bias:
        return "yes"
    as_zeros = " (written as zeros where a format wants them)"
    return "no" + as_zeros * (config.naming == "gpt2")


def _table(rows: Sequence[tuple[str, Any]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _usage(source: Exportable) -> str:
    prompt = '"\\n"' if source.tokenizer is not None else "..."
    reader = llama.tokenizer_class(source.config)
    return (
        f"## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, {reader}\n\n"
        f'tokenizer = {reader}.from_pretrained(".")\n'
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        f'inputs = tokenizer({prompt}, return_tensors="pt")\n'
        f"new = {source.config.block_size} - inputs.input_ids.shape[1]\n"
        "ids = model.generate(**inputs, max_new_tokens=new, do_sample=True)\n"
        "print(tokenizer.decode(ids[0]))\n```"
    )


def _training(source: Exportable, curves: dict[str, Points]) -> str:
    recipe = source.state.get("recipe")
    if not isinstance(recipe, dict):
        return ""
    data, optim = recipe.get("data", {}), recipe.get("optim", {})
    rows = [
        ("data", data.get("name")), ("steps", f"{source.step:,}"),
        ("tokens", f"{source.state.get('tokens', 0):,}"),
        ("optimizer", f"{optim.get('name')}, peak learning rate {optim.get('lr')}"),
        ("initialisation", recipe.get("model", {}).get("init")),
    ]  # fmt: skip
    losses = [loss for step, loss in curves["validation"] if step == source.step]
    if losses:
        rows.append(("validation loss", f"{losses[-1]:.4f} nats per token"))
    parts = ["## Training", "", *_table([(k, v) for k, v in rows if v is not None])]
    if any(curves.values()):
        parts += ["", f"![training and validation loss]({CURVES})"]
    return "\n".join(parts)


def _measured(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    lines = [
        "## Measured", "",
        "Each file was run in its own runtime and compared with the original model.", "",
        "| file | runtime | largest difference | same likeliest token | greedy texts | "
        "tokenizer | loss difference | |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join(lines + [_row(check) for check in checks])


def _row(check: Check) -> str:
    facts = check.facts
    outcome = {True: "passed", False: "**failed**: " + "; ".join(check.problems)}
    cells = [check.artefact, check.runtime]
    if "max_abs_diff" in facts:
        unit = "log-probability" if "compared" in facts else "logit"
        cells += [
            f"{facts['max_abs_diff']:.2g} ({unit})",
            f"{facts['argmax_agreement']:.2%} of {facts['positions']:,}",
            f"{facts['greedy_equal']} of {facts['greedy_texts']} equal",
            _tokenizer_cell(facts), f"{facts['loss_difference']:+.2g}",
        ]  # fmt: skip
    elif facts.get("tensors_bit_exact"):
        cells += ["0 (every tensor bit for bit)", "", "", "", ""]
    else:
        cells += [""] * 5
    cells.append(outcome.get(bool(check.passed), "") if check.passed is not None else "not run")
    return "| " + " | ".join(cells) + " |"


def _tokenizer_cell(facts: dict[str, Any]) -> str:
    if "tokenizer_characters" not in facts:
        return ""
    count = f"{facts['tokenizer_characters']:,} characters"
    if facts["tokenizer_same_ids"] and facts.get("tokenizer_text_differs_only_in"):
        return f"{count}: ids equal, text but for the tokens under Limits"
    same = facts["tokenizer_same_ids"] and facts["tokenizer_text_equal"]
    return f"{count} {'equal' if same else 'DIFFER'}"


def _limits(source: Exportable) -> str:
    lines = [
        "## Limits", "",
        f"- At most {source.config.block_size} positions: prompt and new text together.",
    ]  # fmt: skip
    if source.tokenizer is not None and llama.tokenizer_class(source.config) != AUTO_TOKENIZER:
        lines.append(
            "- For every model of type `qwen2`, `AutoTokenizer` of transformers 5 puts Qwen2's "
            "rules for splitting words in the place of this tokenizer's. The class above does not."
        )
    if source.tokenizer is not None and source.tokenizer.kind == "char":
        lines.append(
            "- The vocabulary consists of the characters of the training text. The runtimes' "
            "tokenizers drop all others silently."
        )
    if source.tokenizer is not None and source.tokenizer.eot is not None:
        name = source.tokenizer.token_bytes(source.tokenizer.eot).decode("utf-8", "replace")
        lines.append(
            f"- In training, a text that spells out `{name}` or another special token was ordinary "
            "text. The runtimes' tokenizers take it for the token itself; in transformers, "
            "`tokenizer(text, split_special_tokens=True)` gives the ids of training."
        )
    if source.tokenizer is not None and (
        otherwise := written_otherwise(source.tokenizer, quote="`")
    ):
        lines.append(
            f"- transformers and the `tokenizers` library decode {otherwise}: they take letters of "
            "these added tokens for bytes. Encoding gives the right ids."
        )
    if source.config.activation == "gelu":
        lines.append(
            "- GELU is the exact (erf) form. The logits of runtimes that only have the tanh form "
            "(llama.cpp, MLX) differ by about 0.01."
        )
    return "\n".join(lines)


def written_otherwise(tokenizer: Tokenizer, *, quote: str = "") -> str:
    """The tokens that the ``tokenizers`` library decodes to another text, as a phrase, or ``""``.

    Args:
        tokenizer: the model's tokenizer.
        quote: stands before and after each text.
    """
    texts = [
        (id, tokenizer.decode([id]), theirs.decode("utf-8", "replace"))
        for id, theirs in tokenizer.taken_for_bytes().items()
    ]
    found = [
        f"{quote}{ours!r:.60}{quote} (id {id}) as {quote}{theirs!r:.60}{quote}"
        for id, ours, theirs in texts
    ]
    more = [f"{len(found) - _MOST_TOKENS} more"] if len(found) > _MOST_TOKENS else []
    *first, last = [*found[:_MOST_TOKENS], *more] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _curves(source: Exportable) -> dict[str, Points]:
    """Training and validation loss by step, up to the exported checkpoint."""
    found: dict[str, Points] = {"train": [], "validation": []}
    if source.run is None or not source.run.events.is_file():
        return found
    for event in EventReader(source.run.events).read_all():
        if isinstance(event, events.RunStarted):  # a resumed run repeats the steps after this one
            found = {k: [p for p in points if p[0] <= event.step] for k, points in found.items()}
        elif isinstance(event, events.Step):
            found["train"].append((event.step, event.loss))
        elif isinstance(event, events.Eval):
            found["validation"].append((event.step, event.val_loss))
    return {name: [p for p in points if p[0] <= source.step] for name, points in found.items()}


def _svg(curves: dict[str, Points]) -> str:
    """Both losses over steps; long runs are averaged over groups of equally many steps."""
    marks = []
    for colour, (name, points) in enumerate(curves.items()):
        if thin := _thinned(points):
            steps, losses = zip(*thin, strict=True)
            kind: charts.Kind = "line" if name == "train" else "dotted line"
            marks.append(charts.Mark(_LABELS[name], steps, losses, kind, colour))
    panel = charts.Panel("", marks, "optimizer step", "loss (nats per token)")
    return charts.svg(charts.Figure("", [panel]))


def _thinned(points: Points) -> Points:
    finite = [(step, loss) for step, loss in points if abs(loss) < float("inf")]
    size = max(1, -(-len(finite) // _MOST_POINTS))
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
