"""The Python API: train, inspect and sample from a program, without a terminal.

``import nanogpt_cli as ng`` offers the names in ``__all__``; torch is imported when the first of
them is used. The packages below (``training``, ``sampling``, ``init``, …) may be used as well, but
may change; this module is stable. Losses are in nats per token everywhere. Everything that a user
can fix is raised as ``UserError``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError, naming
from nanogpt_cli.recipe import Data, Recipe
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run.events import Event
from nanogpt_cli.run.folder import fresh_run
from nanogpt_cli.sampling.settings import Sampling

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals
    from nanogpt_cli.interop import LoadedModel
    from nanogpt_cli.modules.loops.watch import Watch
    from nanogpt_cli.text.tokens import TokenData

__all__ = [
    "Event", "Recipe", "Report", "Sampling", "UserError", "Watch", "inspect", "load_model",
    "load_recipe", "prepare", "sample", "train", "trainer_callback",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "Watch":  # a class that needs torch when it is made
        from nanogpt_cli.modules.loops.watch import Watch

        return Watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Reporter = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def load_recipe(name: str | Path, sets: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a file or by the name of a shipped one, with overrides as in ``--set``.

    Args:
        name: ``"small"``, ``"mine.toml"``, …
        sets: ``"optim.lr=3e-4"``, …

    Returns:
        A validated recipe with every default filled in.

    Raises:
        UserError: the recipe is invalid; the message lists every problem with file and line.
    """
    return recipe_files.load(name, sets).recipe


def prepare(
    name: str | Sequence[str], tokenizer: str, *, say: Reporter = _silent, **options: Any
) -> TokenData:
    """Open the tokens of a named data set, text files or folders; prepare them if they are missing.

    Args:
        name: ``"shakespeare"``, a path, several of them, …
        tokenizer: ``"char"``, ``"byte"``, ``"gpt2"``, ``"bpe:4096"``, …
        say: receives lines of commentary.
        options: any other key of a recipe's table ``[data]``: ``val_fraction=0.2``,
            ``text_field="body"``, …

    Returns:
        The prepared data set: ``train`` and ``val`` are read-only arrays of token ids, shape
        (tokens,), beside their ``tokenizer`` and ``vocab_size``.

    Raises:
        UserError: a value is wrong, a source cannot be found or fetched, or the text cannot be
            prepared.
    """
    data = {"name": name if isinstance(name, str) else list(name), "tokenizer": tokenizer}
    return _tokens(recipe_files.from_values({"data": data | options}).data, say)


def _tokens(data: Data, say: Reporter) -> TokenData:
    from nanogpt_cli.text import prepare, tokens

    return tokens.open_data(prepare.ensure(data.model_dump(), report=say))


def train(
    recipe: Recipe,
    *,
    out: Path | str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Reporter = _silent,
) -> Iterator[Event]:
    """Train, yielding the events of the run; leaving the loop ends the training.

    Args:
        recipe: the recipe to train.
        out: the folder in which to create a run folder (``"runs"``) that ``nanogpt watch`` and
            ``load_model`` read; ``None`` keeps everything in memory.
        should_stop: called between steps; true saves a checkpoint and ends the run.
        say: receives lines of commentary.

    Yields:
        Events with a ``type`` each, such as ``step`` (``loss``), ``eval`` (``val_loss``) and
        ``run_ended``; ``nanogpt_cli.run.events`` describes their fields.

    Raises:
        UserError: the recipe does not fit the data or the machine, or the disk is full.
    """
    from nanogpt_cli import files
    from nanogpt_cli.training.drive import drive
    from nanogpt_cli.training.trainer import Trainer

    data = _tokens(recipe.data, say)
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
) -> LoadedModel:
    """Load a trained model with its tokenizer.

    Args:
        source: a run, a checkpoint, a Hugging Face folder or hub id, or nanoGPT's ``ckpt.pt``; the
            newest run when empty.
        checkpoint: which checkpoint of a run: "best", "last" or a step.
        out: the folder in which a run is looked up by name.

    Returns:
        The model in evaluation mode, in float32 on the CPU, with ``tokenizer`` (``None`` if the
        source has none), ``label`` and ``step``.

    Raises:
        UserError: nothing is found under this name, or it is damaged.
    """
    from nanogpt_cli.interop import opening

    return opening.resolve(str(source), checkpoint=checkpoint, out=Path(out))


def sample(
    source: LoadedModel,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int = 0,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt, yielding pieces of text as they are drawn.

    Args:
        source: a model from ``load_model``.
        prompt: the text to continue.
        max_new_tokens: the largest number of tokens to draw.
        seed: the same seed repeats the text.
        sampling: temperature and filters; those of ``nanogpt sample`` by default.
        stop: strings that end the text; the string itself is not yielded.

    Yields:
        Pieces of the continuation, without the prompt; joined they are the text.

    Raises:
        UserError: the source has no tokenizer, or the prompt has characters it does not know.
    """
    import torch

    from nanogpt_cli.sampling.continuation import continue_prompts
    from nanogpt_cli.sampling.sampler import GenerationConfig
    from nanogpt_cli.sampling.tuning import tune
    from nanogpt_cli.sampling.weights import Weights

    tokenizer = source.require_tokenizer()
    weights = Weights.of(source.model)
    if max_new_tokens > 64:  # for fewer, finding the fastest layout takes longer than it saves
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
        scheme: the initialisation scheme that the weights follow, such as ``gpt2`` or
            ``gpt2 × 0.5``; empty if none is near or the weights are trained.
        measured: ``signals`` by depth and statistics (``tensors``) of every matrix. Sizes of
            signals and gradients are RMS values, and losses are in nats per token.
        expected: the signals that theory expects; ``None`` for models that it does not cover.
    """

    verdicts: list[Verdict]
    scheme: str
    measured: Inspection
    expected: Signals | None = None


def inspect(module: nn.Module, *, batch: int = 2, length: int = 128, seed: int = 0) -> Report:
    """Measure on random tokens how signals and gradients pass through a model.

    Args:
        module: any decoder of transformers, nanoGPT or your own whose call maps token ids, shape
            (B, T), to logits, shape (B, T, V). It runs in evaluation mode, on the CPU; if its
            parameters are on another device, a copy of it is used.
        batch, length: shape (B, T) of the tokens; T is at most the model's context length.
        seed: seed of the random tokens.

    Raises:
        UserError: the module cannot be run on token ids, or no residual stream is found in it.
    """
    from nanogpt_cli.init.theory import random_tokens
    from nanogpt_cli.modules import inspection
    from nanogpt_cli.modules.graph.passes import evaluation, unwrapped
    from nanogpt_cli.modules.sizes import sizes_of
    from nanogpt_cli.modules.starts.build import Built

    name = type(module).__name__
    module = unwrapped(module)
    with naming(name):
        sizes = sizes_of(module)
        _check_inspectable(module, sizes.vocab_size)
        if any(p.device.type != "cpu" for p in module.parameters()):
            module = copy.deepcopy(module).cpu()
        length = min(length, sizes.block_size or length)
        ids, targets = random_tokens(sizes, batch, length, seed)
        built = Built(module, name)
        with evaluation(module):
            found = inspection.inspect(built, inspection.watch(built, ids), ids, targets)
    return Report(found.verdicts, found.scheme, found.found, found.expected)


def _check_inspectable(module: nn.Module, vocab_size: int) -> None:
    if any(p.is_meta for p in module.parameters()):
        raise UserError(
            "its parameters are on the device meta and have no values", "initialise it first"
        )
    if not vocab_size:
        raise UserError(
            "neither a configuration nor an nn.Embedding gives the size of its vocabulary",
            "give the module a config with vocab_size",
        )


def trainer_callback(watch: Watch) -> TrainerCallback:
    """Make a callback for the ``Trainer`` of transformers that reports its steps to ``watch``.

    Losses are those that the Trainer logs; with ``logging_steps=1`` it logs every step.

    Args:
        watch: a watch on the model that the Trainer trains.

    Raises:
        UserError: transformers is not installed.
    """
    from nanogpt_cli.modules.loops.trainer_callback import callback

    return callback(watch)
