"""Item ``decoding``: steps replayed as CUDA graphs give the tokens of steps that are not."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from nanogpt_cli.bench.on_gpu import setup
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting

if TYPE_CHECKING:
    import torch

    from nanogpt_cli.model.gpt import GPT

_PROMPT = [1, 2, 3, 4]


def work(report: Report, setting: Setting) -> None:
    """Both formats of the weights, one text and eight at once."""
    import torch

    model = _model(setting)
    for dtype in (torch.float32, torch.bfloat16):
        for texts in (1, 8):
            name = f"{str(dtype).removeprefix('torch.')}, {texts} at once"
            with report.part(name) as part:
                _same_text(part, model, dtype, texts, setting)


def _model(setting: Setting) -> GPT:
    from nanogpt_cli import schemes
    from nanogpt_cli.init import drawing
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.training import spec

    recipe = recipe_files.load("gpt2-124m-nanogpt", list(setup.TINY) if setting.tiny else []).recipe
    config = spec.model_config(recipe, recipe.model.vocab_size)
    model = drawing.build(config, schemes.get("gpt2"), seed=0)
    return model.to(setting.device).eval()


def _same_text(part: Part, model: GPT, dtype: torch.dtype, texts: int, setting: Setting) -> None:
    """Compare replayed steps with the same steps run eagerly, and float32 with the slow twin."""
    import torch

    new = setting.size(200, 20)
    draw = partial(_draw, model, dtype=dtype, texts=texts)
    with _watched(capture=True) as replays:
        replayed = draw(new=new)
        started = time.perf_counter()
        again = draw(new=new)
        took = time.perf_counter() - started
    with _watched(capture=False):
        started = time.perf_counter()
        eager = draw(new=new)
        eagerly = time.perf_counter() - started
    part.facts |= {
        "captured": [replay._graph is not None for replay in replays],
        "tokens_per_s": texts * new / took, "eager_tokens_per_s": texts * new / eagerly,
    }  # fmt: skip
    for failure in {replay.failure for replay in replays} - {""}:
        part.check(False, f"the step could not be captured: {failure}")
    if setting.device == "cuda":
        part.check(all(part.facts["captured"]), "a step was not captured")
    part.check(replayed == again, "two texts with one seed differ")
    part.check(replayed == eager, "replayed and eager steps give different tokens")
    if dtype == torch.float32:
        naive = draw(new=min(new, 40), cached=False)
        same = {key: tokens[: len(naive[key])] for key, tokens in replayed.items()}
        part.check(same == naive, "the cache gives other tokens than the module itself")


def _draw(
    model: GPT, *, dtype: torch.dtype, texts: int, new: int, cached: bool = True
) -> dict[int, list[int]]:
    """The new tokens of each text."""
    import torch

    from nanogpt_cli.sampling.sampler import GenerationConfig, generate
    from nanogpt_cli.sampling.weights import Weights

    exact = dtype == torch.float32
    weights = Weights.of(model, None if exact else dtype)
    config = GenerationConfig(
        new, samples=texts, seed=1, weights=weights, exact=exact, cached=cached
    )
    found: dict[int, list[int]] = {}
    for token in generate(model, [_PROMPT], config):
        found.setdefault(token.sample, []).append(token.id)
    return found


@contextmanager
def _watched(*, capture: bool) -> Iterator[list[Any]]:
    """The replays that are made meanwhile; without ``capture`` their steps stay eager.

    Steps of the same shapes run on every device, so that they differ in the graph alone.
    """
    from nanogpt_cli.sampling import decode, decode_graph

    made: list[Any] = []

    def make(*arguments: Any) -> decode_graph.Replay:
        replay = decode_graph.Replay(*arguments)
        if not capture:
            replay._eager_left = math.inf
        made.append(replay)
        return replay

    with (
        mock.patch.object(decode, "Replay", make),
        mock.patch.object(decode, "replays", return_value=True),
    ):
        yield made
