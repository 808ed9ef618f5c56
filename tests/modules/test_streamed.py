"""Passes and gradients of a module that never has all its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_build import TYPES, library_model, values, written
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.starts.build import Built, build
from nanogpt_cli.modules.starts.gradients import stream_gradients
from nanogpt_cli.modules.starts.streaming import logits_of, streamed

IDS = torch.randint(1, 150, (2, 17), generator=torch.Generator().manual_seed(0))
INPUT, TARGETS = IDS[:, :-1], IDS[:, 1:].contiguous()


def blocks_of(module: nn.Module) -> list[str]:
    stacks = [n for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 3]
    return [f"{stacks[0]}.{i}" for i in range(3)]


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits_of(module(INPUT))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_streamed_pass_is_a_whole_pass_bit_by_bit(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    whole, lean = build(str(tmp_path), 4), build(str(tmp_path), 4)
    whole.whole()
    with streamed(lean, blocks_of(lean.module)):
        assert torch.equal(logits(lean.module), logits(whole.module))
        assert torch.equal(logits(lean.module), logits(whole.module))  # drawn again the same
    assert all(p.is_meta for p in lean.module.parameters())


def test_stored_weights_are_streamed(tmp_path: Path) -> None:
    model = library_model(written(tmp_path, "mixtral"), 2)
    model.save_pretrained(tmp_path, max_shard_size="60kB")
    lean = build(str(tmp_path))
    with streamed(lean, blocks_of(lean.module)):
        assert torch.equal(logits(lean.module), logits(model))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_everything_is_observed_once_with_its_values(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    built = build(str(tmp_path), 1)
    blocks = blocks_of(built.module)
    expected = values(build(str(tmp_path), 1).whole())
    seen: dict[str, Tensor] = {}
    largest = 0

    def observe(path: str, submodule: nn.Module) -> None:
        nonlocal largest
        for name, p in submodule.named_parameters(path, recurse=path in blocks):
            assert name not in seen or name.endswith("lm_head.weight")
            seen[name] = p.detach().clone()
        present = [p for p in built.module.parameters() if not p.is_meta]
        largest = max(largest, sum(p.numel() for p in present))

    with streamed(built, blocks, observe):
        logits(built.module)
    assert expected.keys() <= seen.keys()
    assert all(torch.equal(seen[name], value) for name, value in expected.items())
    # Never more than one block, the outer matrices and the norms are there.
    block = sum(v.numel() for n, v in expected.items() if n.startswith(f"{blocks[0]}."))
    outside = sum(v.numel() for n, v in expected.items() if not n.startswith(tuple(blocks)))
    assert largest <= block + outside


def test_a_module_with_values_is_only_observed() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = values(module)
    paths: list[str] = []
    with streamed(Built(module, ""), ["1"], lambda path, _: paths.append(path)):
        module(torch.zeros(3))
    assert paths == ["0", "1"]
    assert all(
        before[n] is not None and torch.equal(before[n], v) for n, v in values(module).items()
    )
    with pytest.raises(UserError, match="no submodule"), streamed(Built(module, ""), ["7"]):
        pass


def test_a_failed_pass_leaves_nothing_behind(tmp_path: Path) -> None:
    built = build(str(written(tmp_path, "llama")))
    blocks = blocks_of(built.module)

    def fail(*_: Any) -> None:
        raise KeyError

    dict(built.module.named_modules())[blocks[1]].register_forward_pre_hook(fail)
    with pytest.raises(KeyError), streamed(built, blocks):
        logits(built.module)
    assert all(p.is_meta for p in built.module.parameters())


def autograd(module: nn.Module, blocks: list[str]) -> tuple[list[float], dict[str, float], float]:
    """The oracle: plain hooks on a module with all its values, and one backward pass."""
    seen: list[Tensor] = []

    def keep(x: Any) -> None:
        x = x[0] if isinstance(x, tuple) else x
        x.retain_grad()
        seen.append(x)

    by_path = dict(module.named_modules())
    hooks: list[Any] = [
        by_path[path].register_forward_pre_hook(
            lambda _, args, kwargs: keep(args or kwargs["hidden_states"]), with_kwargs=True
        )
        for path in blocks
    ]
    hooks.append(by_path[blocks[-1]].register_forward_hook(lambda _, __, output: keep(output)))
    loss = F.cross_entropy(logits_of(module(INPUT)).flatten(0, 1), TARGETS.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    stream = [float(x.grad.double().square().mean().sqrt()) for x in seen if x.grad is not None]
    norms = {n: float(p.grad.norm()) for n, p in module.named_parameters() if p.grad is not None}
    return stream, norms, float(loss.detach())


@pytest.mark.numeric
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "mixtral", "gemma3_text"])
def test_gradients_by_recomputation_are_those_of_autograd(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    whole, lean = build(str(tmp_path), 4), build(str(tmp_path), 4)
    blocks = blocks_of(lean.module)
    stream, norms, loss = autograd(whole.whole(), blocks)
    for built in (lean, Built(whole.module, "")):
        found = stream_gradients(built, blocks, INPUT, TARGETS)
        assert found.reason == ""
        assert found.loss == pytest.approx(loss, rel=1e-6)
        assert found.stream == pytest.approx(stream, rel=1e-5)
        assert found.parameters.keys() == norms.keys()
        # Gradients that cancel, such as those of a key's bias, are rounding.
        floor = 1e-6 * max(norms.values())
        assert found.parameters == pytest.approx(norms, rel=1e-5, abs=floor)
    assert all(p.is_meta for p in lean.module.parameters())


class Woven(nn.Module):
    """A model whose blocks are connected in every way that arguments and results can show."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(150, 8), nn.Linear(8, 150)
        self.mix = nn.Parameter(torch.tensor([0.5, 0.3]))
        self.blocks = nn.ModuleList(Gated() for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = first = self.embed(ids)
        skipped = []
        for block in (*self.blocks, self.blocks[0]):  # the first one twice
            x, extra = block(self.mix[0] * x + self.mix[1] * first, residual=first)
            skipped.append(extra)
        head: Tensor = self.head(x + sum(skipped))
        return head


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.linear(x))
        return x + y * residual, y.square()


@pytest.mark.numeric
def test_connections_around_the_blocks_are_followed() -> None:
    torch.manual_seed(0)
    module = Woven()
    blocks = [f"blocks.{i}" for i in range(3)]
    found = stream_gradients(Built(module, ""), blocks, INPUT, TARGETS)
    loss: Any = F.cross_entropy(module(INPUT).flatten(0, 1), TARGETS.flatten())
    loss.backward()
    norms = {n: float(p.grad.norm()) for n, p in module.named_parameters() if p.grad is not None}
    assert found.reason == ""
    assert len(found.stream) == 5
    assert found.parameters == pytest.approx(norms, rel=1e-5)


class Whispering(Gated):
    """Blocks that hand each other values past their arguments."""

    kept: Tensor | None = None

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, residual: Any) -> Any:
        if self.how == "attribute":
            self.kept = x * 2
        elif self.how == "container":
            residual["kept"] = x
        elif self.how == "random":
            x = x + torch.rand_like(x)
        return x + self.linear(x), object() if self.how == "object" else None


class Chain(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(150, 8), nn.ModuleList([Whispering(how)])

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.blocks[0](self.embed(ids), {})
        return F.linear(x, self.embed.weight)


@pytest.mark.parametrize(
    "how, words",
    [("attribute", "keeps the tensor 'kept'"), ("container", "writes into a container"),
     ("random", "other values"), ("object", "exchanges a object")],
)  # fmt: skip
def test_hidden_connections_are_refused(how: str, words: str) -> None:
    found = stream_gradients(Built(Chain(how), ""), ["blocks.0"], INPUT, TARGETS)
    assert words in found.reason
    assert not found.stream
    assert stream_gradients(Built(Chain(""), ""), ["blocks.0"], INPUT, TARGETS).reason == ""
