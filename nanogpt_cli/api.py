"""The Python API: train, inspect and sample from a program, without a terminal.

``import nanogpt_cli as ng`` offers what stands here, and imports torch when the first of it is
used. Everything deeper (the rooms ``training``, ``sampling``, ``init``, …) may be used as well, but
may change; this page stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.events import Event
from nanogpt_cli.run.folder import fresh_run
from nanogpt_cli.sampling.settings import Sampling

if TYPE_CHECKING:
    from torch import nn

    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.interop.opening import Source
    from nanogpt_cli.text.tokens import TokenData

__all__ = [
    "Event", "Recipe", "Report", "Sampling", "UserError", "inspect", "load_model", "load_recipe",
    "prepare", "sample", "train",
]  # fmt: skip

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def load_recipe(name: str | Path, sets: Sequence[str] = ()) -> Recipe:
    """A recipe by file or shipped name, with overrides as in ``--set``.

    Args:
        name: ``"small"``, ``"mine.toml"``, …
        sets: ``"optim.lr=3e-4"``, …

    Raises:
        UserError: all that is wrong with it, with file and line.
    """
    return recipe_files.load(name, sets).recipe


def prepare(
    name: str, tokenizer: str, *, val_fraction: float = 0.1, say: Say = _silent
) -> TokenData:
    """The tokens of a named set, a text file or a folder; made when they are missing.

    Args:
        name: ``"shakespeare"``, a path, …
        tokenizer: ``"char"``, ``"byte"``, ``"gpt2"``, ``"bpe:4096"``, …
        val_fraction: share of the text kept for validation.
        say: receives lines of commentary.
    """
    from nanogpt_cli.text import prepare as preparing
    from nanogpt_cli.text import tokens

    folder = preparing.ensure(name, tokenizer, val_fraction=val_fraction, report=say)
    return tokens.open_data(folder)


def train(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Say = _silent,
) -> Iterator[Event]:
    """Train, yielding the events of the run; leaving the loop ends the training.

    Args:
        recipe: what to do.
        out: where to make a run folder (``"runs"``), which ``nanogpt watch`` and ``load_model``
            read; ``None`` keeps everything in memory.
        should_stop: asked between steps; true ends the run with a saved checkpoint.
        say: receives lines of commentary.

    Raises:
        UserError: the recipe does not fit the data or the machine.
    """
    from nanogpt_cli import files
    from nanogpt_cli.training.drive import drive
    from nanogpt_cli.training.trainer import Trainer

    section = recipe.data
    data = prepare(section.name, section.tokenizer, val_fraction=section.val_fraction, say=say)
    if out is None:
        yield from Trainer(recipe, data, should_stop=should_stop).run()
        return
    run = fresh_run(recipe.run.name, Path(out))
    files.write_text(run.recipe, recipe_files.to_toml(recipe))
    yield from drive(
        run, recipe, lambda: Trainer(recipe, data, run, should_stop=should_stop), resume=False,
        report=say,
    )  # fmt: skip


def load_model(
    source: str | Path = "", *, checkpoint: str = "best", out: Path | str = "runs"
) -> Source:
    """A trained model with its tokenizer.

    Args:
        source: a run, a checkpoint, a Hugging Face folder or hub id, or nanoGPT's ``ckpt.pt``; the
            newest run when empty.
        checkpoint: of a run: "best", "last" or a step.
        out: where runs are looked for by name.

    Raises:
        UserError: there is no such thing, or it is damaged.
    """
    from nanogpt_cli.interop import opening

    return opening.resolve(str(source), checkpoint=checkpoint, out=Path(out))


def sample(
    source: Source,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int = 0,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt, yielding pieces of text as they are drawn.

    Args:
        source: of ``load_model``.
        prompt: text that the tokenizer knows.
        max_new_tokens: at most that many.
        seed: the same seed repeats the text.
        sampling: temperature and filters; those of ``nanogpt sample`` by default.
        stop: texts that end it.

    Raises:
        UserError: the source has no tokenizer, or the prompt has characters it does not know.
    """
    import torch

    from nanogpt_cli.sampling.continuation import continue_prompts
    from nanogpt_cli.sampling.decode import tune
    from nanogpt_cli.sampling.sampler import GenerationConfig
    from nanogpt_cli.sampling.weights import Weights

    tokenizer = source.need_tokenizer()
    weights = Weights.of(source.model)
    if max_new_tokens > 64:  # else finding the fastest layout takes longer than it saves
        tune(weights, [torch.get_num_threads()])
    generation = GenerationConfig(
        max_new_tokens, seed=seed, sampling=sampling or Sampling(), weights=weights
    )
    prompts = [tokenizer.encode(prompt)]
    for piece in continue_prompts(source.model, tokenizer, prompts, generation, stop=stop):
        yield piece.text


@dataclass(frozen=True)
class Report:
    """What ``inspect`` found.

    Attributes:
        verdicts: sentences with a severity ("ok", "note", "warn", "fail") and a number.
        scheme: the initialisation scheme whose standard deviations come nearest.
        measured: signals by depth and statistics of every matrix.
    """

    verdicts: list[Verdict]
    scheme: str
    measured: Inspection


def inspect(module: nn.Module, *, batch: int = 2, length: int = 128, seed: int = 0) -> Report:
    """How signals and gradients pass through a model, on random tokens.

    Args:
        module: any module with GPT-2's parameter names: nanoGPT's, transformers', your own.
        batch, length: of the tokens, (B, T); T at most its context.
        seed: of the tokens.

    Raises:
        UserError: it is no GPT-2; the first name or shape that differs is named.
    """
    from nanogpt_cli.init import detect, lint_signals
    from nanogpt_cli.init.inspect import measure
    from nanogpt_cli.init.sources import Stored
    from nanogpt_cli.init.theory import random_tokens
    from nanogpt_cli.interop.module import adopt

    model = adopt(module, type(module).__name__)
    source = Stored(model.config, dict(model.named_parameters()).__getitem__)
    ids, targets = random_tokens(model.config, batch, min(length, model.config.block_size), seed)
    found = measure(source, ids, targets)
    verdicts = detect.lint_foreign(found.tensors, model.config)
    verdicts += lint_signals.on_signals(found.signals, model.config)
    nearest = detect.nearest_scheme(found.tensors, model.config).scheme.name
    return Report(verdicts, nearest, found)
