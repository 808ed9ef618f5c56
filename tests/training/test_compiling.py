"""What the compiler is given, counted by a backend that generates no code.

``aot_autograd`` traces forward and backward as it does for a GPU; the two graphs are then run as
they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import toy_run
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import distributed, joining
from nanogpt_cli.model import loss
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.training.setup import assemble
from nanogpt_cli.training.spec import resolve
from nanogpt_cli.training.stats import Collector
from nanogpt_cli.training.stepper import Stepper
from nanogpt_cli.training.trainer import Trainer

_STEPS = 3


@dataclass
class Graphs:
    """The graphs the compiler was given, in order."""

    forward: list[GraphModule] = field(default_factory=list)
    backward: list[GraphModule] = field(default_factory=list)
    inference: list[GraphModule] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.forward), len(self.backward)

    def inputs(self, graphs: list[GraphModule]) -> list[object]:
        return [
            node.meta["val"]
            for graph in graphs
            for node in graph.graph.nodes
            if node.op == "placeholder"
        ]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Counts what ``torch.compile`` compiles."""
    found = Graphs()

    def keep(into: list[GraphModule], graph: GraphModule, _: object) -> object:
        into.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=functools.partial(keep, found.forward),
        bw_compiler=functools.partial(keep, found.backward),
        inference_compiler=functools.partial(keep, found.inference),
    )
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


def compiled(**train: object) -> Recipe:
    return toy_run.recipe(train={"compile": True, **train}, model={"dropout": 0.1, "n_layer": 3})


def stepped(recipe: Recipe, folder: Path, group: distributed.Group | None = None) -> Stepper:
    """A stepper that has made its trial and three steps."""
    stepper = assemble(resolve(recipe, toy_run.data(folder), group=group or distributed.Group()))
    for index in range(_STEPS):
        assert stepper.step(index).finite
    return stepper


def in_pieces(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, vocab_size: int) -> None:
    """Let the head compute a micro-batch in four pieces."""
    positions = recipe.train.batch_size * recipe.model.block_size
    monkeypatch.setitem(loss._AT_ONCE, "cpu", positions * vocab_size // 4)


# Of 12 sequences a step the first of two ranks has 6: micro-batches of 4 and of 2.
_RAGGED = {"batch_size": 4, "tokens_per_step": 192}
_FIRST_OF_TWO = distributed.Group(rank=0, world=2)


@pytest.mark.parametrize("ragged", [False, True])
def test_trial_and_steps_share_one_graph_of_fixed_shapes(
    tmp_path: Path, graphs: Graphs, ragged: bool
) -> None:
    recipe = compiled(**_RAGGED)
    stepper = stepped(recipe, tmp_path, _FIRST_OF_TWO if ragged else None)
    assert len(stepper.slots) % stepper.micro_batch == (2 if ragged else 0)
    assert graphs.counts == (1, 1)
    assert len(graphs.inference) == 1  # of evaluations
    values = graphs.inputs(graphs.forward + graphs.backward)
    assert not [value for value in values if isinstance(value, torch.SymInt)]
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
    assert all(isinstance(size, int) for shape in shapes for size in shape)


def test_what_a_run_does_around_its_steps_compiles_nothing(tmp_path: Path, graphs: Graphs) -> None:
    trainer = Trainer(
        toy_run.recipe(
            train={"compile": True, "max_steps": 4, "eval_every": 2},
            stats={"every": 1, "budget": 1.0},
            sample={"max_new_tokens": 2},
        ),
        toy_run.data(tmp_path),
    )
    assert toy_run.run(trainer)
    assert graphs.counts == (1, 1)
    assert len(graphs.inference) == 1


def test_nothing_of_the_logits_size_waits_for_the_backward_pass(
    tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = compiled()
    vocab_size = toy_run.data(tmp_path).vocab_size
    in_pieces(monkeypatch, recipe, vocab_size)
    stepped(recipe, tmp_path)
    crossing = [v.shape for v in graphs.inputs(graphs.backward) if isinstance(v, torch.Tensor)]
    table = (vocab_size, recipe.model.n_embd)  # the gradient of the head, computed already
    assert table in crossing
    assert not [shape for shape in crossing if vocab_size in shape and shape != table]


def test_a_compiled_ragged_step_equals_the_plain_one(tmp_path: Path, graphs: Graphs) -> None:
    still = {"dropout": 0.0, "n_layer": 1}
    found = [
        stepped(
            toy_run.recipe(model=still, train={**_RAGGED, "compile": way}), tmp_path, _FIRST_OF_TWO
        )
        for way in (True, False)
    ]
    assert graphs.counts == (1, 1)
    for ours, theirs in zip(*(s.model.parameters() for s in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[distributed.Group]:
    """A process group of this process alone."""
    monkeypatch.setenv("NANOGPT_JOIN_ALONE", "1")
    with joining.alone() as found:
        yield found


def test_ddp_splits_the_graph_where_gradients_are_sent(
    tmp_path: Path, graphs: Graphs, group: distributed.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 1.2 MB and buckets of 1 MiB make a graph a block, and one for what is left."""
    monkeypatch.setattr(distributed, "BUCKET_MB", 1.0)
    wide = {"n_embd": 160, "n_layer": 3}
    recipe = toy_run.recipe(model=wide, train={"compile": True, "parallel": "ddp"})
    stepped(recipe, tmp_path, group)
    assert graphs.counts == (4, 4)


def test_fsdp_compiles_each_block_and_the_head_with_the_loss(
    tmp_path: Path, graphs: Graphs, group: distributed.Group
) -> None:
    stepper = stepped(compiled(parallel="fsdp"), tmp_path, group)
    assert distributed.is_sharded(stepper.model)
    assert graphs.counts == (2, 2)  # the blocks are alike
    targets = {str(node.target) for node in graphs.forward[-1].graph.nodes}
    assert any("nll_loss" in name or "log_softmax" in name for name in targets)
    ids = torch.zeros(2, stepper.model.config.block_size, dtype=torch.int64)
    before = len(graphs.inference)
    Collector(stepper.model, ids, stepper.device, every=1, budget=1.0, group=group).rehearse()
    assert graphs.counts == (2, 2)
    assert len(graphs.inference) == before  # statistics look into blocks that are not compiled


def test_fsdp_in_bfloat16_steps_on_a_cpu_too(tmp_path: Path, group: distributed.Group) -> None:
    recipe = toy_run.recipe(train={"parallel": "fsdp", "precision": "bf16"})
    stepped(recipe, tmp_path, group)


def test_too_little_memory_in_the_trial_is_no_failure_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(_: object, **__: object) -> object:
        def run(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        return run

    monkeypatch.setattr(torch, "compile", lacking)
    with pytest.raises(UserError, match="a micro-batch of 4 sequences does not fit") as caught:
        assemble(resolve(compiled(), toy_run.data(tmp_path)))
    assert "set train.batch_size = 2" in str(caught.value.hint)
