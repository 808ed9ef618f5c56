"""``Watch`` on loops of others: what it measures, and that it leaves them as they were."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nanogpt_cli as ng
from nanogpt_cli.modules.loops import watch_log
from nanogpt_cli.modules.loops.watch import Watch
from nanogpt_cli.modules.loops.watch_target import find_blocks, unwrapped
from nanogpt_cli.run import events
from nanogpt_cli.run.follow import EventReader

V, T, C, H = 11, 8, 16, 2


class Attention(nn.Module):
    """Causal attention by the fused kernel, or as a softmax written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.view(*x.shape[:2], H, C // H).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
            scores = (q @ k.mT / math.sqrt(C // H)).masked_fill(hidden, -math.inf)
            y = F.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, fused: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.first, self.mixer = nn.LayerNorm(C), Attention(fused)
        self.second, self.wide = (
            nn.LayerNorm(C),
            nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C), nn.Dropout(0.2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gain * self.mixer(self.first(x))
        return x + self.wide(self.second(x))


class Model(nn.Module):
    """Names that say nothing, so that everything is found by what it does."""

    def __init__(self, block: Callable[[], nn.Module] = Block, saving: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.saving = saving
        self.table = nn.Embedding(V, C)
        self.stack = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.stack:
            x = checkpoint(block, x, use_reentrant=False) if self.saving else block(x)
        return self.head(x)


def batch(step: int, size: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    ids = torch.randint(V, (size, T + 1), generator=rng)
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: nn.Module, step: int) -> Tensor:
    ids, targets = batch(step)
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def train(
    model: nn.Module, folder: Path | None, steps: int = 25, micro: int = 1, **options: Any
) -> list[float]:
    """A loop as anybody might write it; the watch, if any, is what is under test."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, folder, optimizer=optimizer, **options) if folder else None
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        total = 0.0
        for part in range(micro):
            loss = loss_of(model, step * micro + part) / micro
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        if watch:
            watch.step(loss=total)
    if watch:
        watch.close()
    return losses


def log(folder: Path) -> list[events.Event]:
    return EventReader(folder / "events.jsonl").read_all()


def samples(folder: Path) -> list[events.Layers]:
    return [e for e in log(folder) if isinstance(e, events.Layers)]


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("kind", ["plain", "written out", "saving", "accumulating", "batch"])
def test_losses_are_bit_for_bit_those_without_a_watch(kind: str, tmp_path: Path) -> None:
    def model() -> nn.Module:
        return Model(lambda: Block(kind != "written out"), saving=kind == "saving")

    options: dict[str, Any] = {"micro": 3 if kind == "accumulating" else 1}
    alone = train(model(), None, **options)
    extra = {"batch": (batch(0)[0],)} if kind == "batch" else {}
    assert train(model(), tmp_path / "run", every=1, **options, **extra) == alone
    found = samples(tmp_path / "run")
    assert [e.step for e in found] == list(range(1, 26))
    for name in ("resid_rms", "resid_kurtosis", "attn_rms", "attn_entropy", "grad_norm"):
        assert all(len(e.stats[name]) == 3 for e in found), name


@pytest.mark.numeric
@pytest.mark.parametrize("fused", [True, False])
def test_activations_equal_those_of_plain_hooks(fused: bool, tmp_path: Path) -> None:
    model = Model(lambda: Block(fused))
    model.eval()  # no dropout, so that the same pass can be made twice
    seen: dict[str, Tensor] = {}
    watch = Watch(model, tmp_path / "run")
    loss = loss_of(model, 0)
    watch.step(loss=loss)
    for n, block in enumerate(model.stack):
        block.register_forward_hook(lambda m, i, o, n=n: seen.update({f"resid{n}": o}))
        block.mixer.register_forward_hook(lambda m, i, o, n=n: seen.update({f"attn{n}": o}))
        block.mixer.qkv.register_forward_hook(lambda m, i, o, n=n: seen.update({f"qkv{n}": o}))
        block.wide.register_forward_hook(lambda m, i, o, n=n: seen.update({f"mlp{n}": o}))
    loss_of(model, 0)
    (found,) = samples(tmp_path / "run")
    for n in range(3):
        for name in ("resid", "attn", "mlp"):
            wanted = float(seen[f"{name}{n}"].detach().square().mean().sqrt())
            assert found.stats[f"{name}_rms"][n] == pytest.approx(wanted, rel=1e-5)
        q, k, _ = (t.view(4, T, H, -1).transpose(1, 2)[:2] for t in seen[f"qkv{n}"].chunk(3, -1))
        scores = q @ k.mT / math.sqrt(C // H)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        p = scores.masked_fill(hidden, -math.inf).softmax(-1)
        entropy = torch.stack(
            [-(row := p[:, :, t, : t + 1]).mul(row.log()).sum(-1).mean(0) / math.log(t + 1)
             for t in range(1, T)]
        )  # fmt: skip
        heads = entropy.mean(0)
        for name, value in (
            ("attn_entropy", heads.mean()),
            ("attn_entropy_min", heads.min()),
            ("attn_first", p[:, :, 1:, 0].mean()),
            ("attn_logit_max", scores.masked_fill(hidden, -math.inf).max()),
        ):
            assert found.stats[name][n] == pytest.approx(float(value.detach()), rel=1e-4), name


@pytest.mark.numeric
def test_gradients_and_updates_are_the_true_ones(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watch = Watch(model, tmp_path / "run", optimizer=optimizer)
    matrices = [[p for p in block.parameters() if p.dim() > 1] for block in model.stack]
    before = [[p.detach().clone() for p in row] for row in matrices]
    loss_of(model, 0).backward()
    grads = [torch.cat([p.grad.flatten() for p in b.parameters()]).norm() for b in model.stack]
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    optimizer.step()
    optimizer.zero_grad()
    watch.step(loss=1.0)
    (step,) = [e for e in log(tmp_path / "run") if isinstance(e, events.Step)]
    assert step.grad_norm == pytest.approx(float(whole), rel=1e-5)
    assert step.lr == 0.5
    assert step.tokens == 4 * T
    (found,) = samples(tmp_path / "run")
    for n, (old, new) in enumerate(zip(before, matrices, strict=True)):
        assert found.stats["grad_norm"][n] == pytest.approx(float(grads[n]), rel=1e-5)
        a = torch.cat([x.flatten() for x in old])
        b = torch.cat([x.detach().flatten() for x in new])
        ratio = math.log10(float((a - b).norm() / b.norm()))
        assert found.stats["update_ratio"][n] == pytest.approx(ratio, abs=1e-4)
        assert found.stats["weight_rms"][n] == pytest.approx(
            float(b.square().mean().sqrt()), rel=1e-5
        )


def test_a_loss_scaler_s_factor_is_not_part_of_the_gradient(tmp_path: Path) -> None:
    found = {}
    for scaled in (False, True):
        model = Model().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        watch = Watch(model, tmp_path / str(scaled), optimizer=optimizer)
        scaler.scale(loss_of(model, 0)).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.step(loss=1.0)
        found[scaled] = samples(tmp_path / str(scaled))[0].stats["grad_norm"]
    assert found[True] == pytest.approx(found[False], rel=1e-5)


def test_an_update_that_was_left_out_says_nothing_about_gradients(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watch = Watch(model, tmp_path / "run", optimizer=optimizer)
    (scaler.scale(loss_of(model, 0)) * math.inf).backward()
    scaler.step(optimizer)
    watch.step(loss=1.0)
    (found,) = samples(tmp_path / "run")
    assert "weight_rms" in found.stats
    assert not {"grad_norm", "update_ratio"} & set(found.stats)


def test_what_a_block_scales_is_left_out_and_said(tmp_path: Path) -> None:
    """Attention's output times 0.5 is added, so the module's output is not what is added."""
    train(Model(lambda: Block(gain=0.5)), tmp_path / "run", steps=1)
    (found,) = samples(tmp_path / "run")
    assert "resid_rms" in found.stats
    assert not {"attn_rms", "mlp_rms"} & set(found.stats)
    (note,) = [e.message for e in log(tmp_path / "run") if isinstance(e, events.Note)]
    assert note.startswith("no attn_rms and mlp_rms")


def test_a_model_without_attention(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = nn.GRU(C, C, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.unit(x)[0]

    train(Model(Recurrent), tmp_path / "run", steps=1)
    (found,) = samples(tmp_path / "run")
    assert set(found.stats) == {
        "resid_rms", "resid_kurtosis", "weight_rms", "grad_norm", "update_ratio"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["whole", "in place", "by block"])
def test_a_compiled_model_is_measured_by_a_small_pass_of_its_own(kind: str, tmp_path: Path) -> None:
    def compiled() -> Any:
        torch._dynamo.reset()
        model = Model()
        if kind == "whole":
            return torch.compile(model, backend="eager")
        if kind == "in place":
            model.compile(backend="eager")
        else:
            for n, block in enumerate(model.stack):
                model.stack[n] = torch.compile(block, backend="eager")  # type: ignore[assignment]
        return model

    alone = train(compiled(), None, steps=12)
    model = compiled()
    extra = {"batch": {"ids": batch(0)[0]}} if kind == "in place" else {}
    assert train(model, tmp_path / "run", steps=12, every=5, **extra) == alone
    found = samples(tmp_path / "run")
    assert [e.step for e in found] == [1, 6, 11]
    assert {"resid_rms", "attn_rms", "attn_entropy", "grad_norm"} <= set(found[0].stats)
    assert all(module.training for module in model.modules())


def test_a_forward_pass_that_is_not_seen_is_said(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, tmp_path / "run", optimizer=optimizer)
    watch.step(loss=1.0)
    (note,) = [e.message for e in log(tmp_path / "run") if isinstance(e, events.Note)]
    assert "the loop did not call the blocks of this model" in note


def test_nothing_of_a_pass_is_kept(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, tmp_path / "run", optimizer=optimizer, every=1)
    seen: list[weakref.ref[Tensor]] = []
    handles = [
        m.register_forward_hook(lambda _, i, o: seen.append(weakref.ref(o)))
        for m in model.modules()
        if not isinstance(m, nn.ModuleList)
    ]
    loss = loss_of(model, 0)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)
    for handle in handles:
        handle.remove()
    del loss
    gc.collect()
    assert len(seen) > 20
    assert [ref for ref in seen if ref() is not None] == []


def test_hooks_are_there_on_sampled_steps_only(tmp_path: Path) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, tmp_path / "run", optimizer=optimizer, every=10)
    counts, steps = [], []
    for step in range(12):
        counts.append(hooks(model))
        steps.append(len(optimizer._optimizer_step_pre_hooks))
        loss_of(model, step).backward()
        optimizer.step()
        watch.step(loss=1.0)
    assert [n for n, count in enumerate(counts) if count] == [0, 10]
    assert [n for n, count in enumerate(steps) if count] == [0, 10]
    watch.close()
    assert hooks(model) == 0


def test_an_evaluation_is_no_step_and_moves_no_sample(tmp_path: Path) -> None:
    model = Model()
    watch = Watch(model, tmp_path / "run")
    with torch.no_grad():
        value = loss_of(model, 5)
    watch.evaluate(loss=value)
    loss_of(model, 0).backward()
    watch.step(loss=1.0)
    found = log(tmp_path / "run")
    assert [e.type for e in found[:4]] == ["run_started", "eval", "step", "layers"]
    assert isinstance(found[1], events.Eval)
    assert found[1].val_loss == pytest.approx(float(value))
    assert isinstance(found[2], events.Step)
    assert (found[2].lr, found[2].grad_norm, found[2].tokens) == (None, None, 4 * T)


def test_the_interval_keeps_the_cost_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves half a second at each look, a sample takes as long as many steps."""
    now = iter(x * 0.5 for x in range(1_000_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    train(Model(), tmp_path / "run", steps=60, budget=0.5)
    found = samples(tmp_path / "run")
    assert found[0].step == 1
    assert found[1].step - found[0].step > 10
    assert all(e.cost <= 0.5 for e in found)


def test_how_a_run_ends(tmp_path: Path) -> None:
    def fail(name: str, error: BaseException) -> None:
        with Watch(Model(), tmp_path / name) as watch:
            watch.step(loss=1.0)
            raise error

    with Watch(Model(), tmp_path / "fine") as watch:
        watch.step(loss=1.0)
    with pytest.raises(ZeroDivisionError):
        fail("error", ZeroDivisionError("a bug of theirs"))
    with pytest.raises(KeyboardInterrupt):
        fail("stopped", KeyboardInterrupt())
    last = {name: log(tmp_path / name)[-1] for name in ("fine", "error", "stopped")}
    assert all(isinstance(e, events.RunEnded) for e in last.values())
    reasons = {name: getattr(e, "reason", "") for name, e in last.items()}
    assert reasons == {"fine": "finished", "error": "error", "stopped": "stopped"}
    assert "a bug of theirs" in getattr(last["error"], "message", "")


def test_a_second_run_gets_its_own_folder_and_a_resumed_one_its_old(tmp_path: Path) -> None:
    for _ in range(2):
        train(Model(), tmp_path / "run", steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]
    watch = Watch(Model(), tmp_path / "run", resume=1)
    with pytest.raises(ng.UserError, match="written by another process"):
        Watch(Model(), tmp_path / "run", resume=1)
    watch.step(loss=3.0)
    watch.close()
    steps = [e.step for e in log(tmp_path / "run") if isinstance(e, events.Step)]
    assert steps == [1, 2, 2]


def test_alarms_are_raised(tmp_path: Path) -> None:
    watch = Watch(Model(), tmp_path / "run")
    for loss in (2.0, math.nan):
        watch.step(loss=torch.tensor(loss))
    (alarm,) = [e for e in log(tmp_path / "run") if isinstance(e, events.Alarm)]
    assert (alarm.kind, alarm.step) == ("non_finite", 2)
    assert "nanogpt" not in alarm.advice  # `nanogpt replay` knows nothing of this loop


def test_a_summed_loss_is_not_blamed_on_the_initialisation(tmp_path: Path) -> None:
    watch = Watch(Model(), tmp_path / "run")
    for loss in range(1100, 800, -1):
        watch.step(loss=float(loss))
    watch.close()
    found = [e for e in log(tmp_path / "run") if isinstance(e, events.Alarm) and e.active]
    assert [alarm.kind for alarm in found if alarm.severity != "info"] == ["bad_start"]
    assert "mean over tokens" in found[0].advice


def test_a_disk_that_fails_ends_the_watching_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = Model()
    watch = Watch(model, tmp_path / "run")
    monkeypatch.setattr(watch_log.EventWriter, "__call__", full)
    with pytest.warns(UserWarning, match="No space left"):
        watch.step(loss=1.0)
    assert hooks(model) == 0
    watch.step(loss=1.0)
    watch.evaluate(loss=1.0)
    watch.close()


def test_a_forward_pass_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    model = Model()
    watch = Watch(model, tmp_path / "run")
    handle = model.stack[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model, 0)
    handle.remove()
    assert torch.overrides._get_current_function_mode_stack() == []
    watch.step(loss=1.0)
    assert hooks(model) == 0


def test_a_loss_of_many_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ng.UserError, match="loss has 3 values"):
        Watch(Model(), tmp_path / "run").step(loss=torch.ones(3))


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert train(Model(), tmp_path / "run", steps=2)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    train(Model(), tmp_path / "run", steps=1)
    (step,) = [e for e in log(tmp_path / "run") if isinstance(e, events.Step)]
    assert step.tokens == 2 * 4 * T  # of both processes


def test_blocks_are_found_or_asked_for() -> None:
    model = Model()
    assert find_blocks(model) == list(model.stack)
    assert find_blocks(model, "stack") == list(model.stack)
    assert find_blocks(model, [model.stack[1]]) == [model.stack[1]]
    assert unwrapped(nn.DataParallel(model)) is model
    with pytest.raises(ng.UserError, match="no blocks at 'stak'") as caught:
        find_blocks(model, "stak")
    assert caught.value.hint == "did you mean 'stack'?"
    with pytest.raises(ng.UserError, match="Linear has no list of blocks"):
        find_blocks(nn.Linear(2, 2))
    with pytest.raises(ng.UserError, match="not all modules of Model"):
        find_blocks(model, [nn.Linear(2, 2)])


def test_the_callback_tells_of_a_trainer_s_steps(tmp_path: Path) -> None:
    """Called as ``Trainer`` does, in the order of its loop; losses come with every second step."""
    transformers = pytest.importorskip("transformers")
    model = Model()
    watch = Watch(model, tmp_path / "run")
    callback = ng.trainer_callback(watch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    arguments: Any = None
    callback.on_train_begin(arguments, state, control, model=model, optimizer=optimizer)
    for step in range(1, 5):
        callback.on_step_begin(arguments, state, control)
        loss_of(model, step).backward()
        optimizer.step()
        control.should_log = step % 2 == 0
        callback.on_step_end(arguments, state, control)
        if control.should_log:
            logs = {"loss": 2.0 + step, "learning_rate": 0.1, "grad_norm": 1.5}
            callback.on_log(arguments, state, control, logs=logs)
    callback.on_evaluate(arguments, state, control, metrics={"eval_loss": 2.5})
    callback.on_log(arguments, state, control, logs={"train_runtime": 1.0})
    callback.on_train_end(arguments, state, control)
    found = log(tmp_path / "run")
    steps = [(e.step, e.loss, e.lr, e.grad_norm) for e in found if isinstance(e, events.Step)]
    assert steps == [(2, 4.0, 0.1, 1.5), (4, 6.0, 0.1, 1.5)]
    assert [e.val_loss for e in found if isinstance(e, events.Eval)] == [2.5]
    assert isinstance(found[-1], events.RunEnded)
    assert found[-1].step == 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_llama_of_transformers(attention: str, tmp_path: Path) -> None:
    """Keyword arguments, outputs in objects, masks, rotated and grouped keys."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=C, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=T,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    watch = Watch(model, tmp_path / "run")
    ids, _ = batch(0)
    model(input_ids=ids, labels=ids).loss.backward()
    watch.step(loss=1.0)
    (found,) = samples(tmp_path / "run")
    eager = transformers.LlamaForCausalLM(config)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(input_ids=ids, output_attentions=True)
    for n, p in enumerate(out.attentions):
        p = p[:2]
        assert found.stats["attn_first"][n] == pytest.approx(float(p[:, :, 1:, 0].mean()), rel=1e-4)
        entropy = -torch.special.xlogy(p, p).sum(-1)[:, :, 1:] / torch.arange(2, T + 1).log()
        assert found.stats["attn_entropy"][n] == pytest.approx(float(entropy.mean()), rel=1e-4)
        assert found.stats["attn_entropy_min"][n] == pytest.approx(
            float(entropy.mean((0, 2)).min()), rel=1e-4
        )
    assert {"resid_rms", "attn_rms", "mlp_rms", "weight_rms"} <= set(found.stats)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, "optimizer= .* type str"),
        ({"optimizer": [None]}, "optimizer= .* type NoneType"),
        ({"every": -3}, "every=-3"),
        ({"every": 2.5}, "every=2.5"),
        ({"budget": math.nan}, "budget=nan"),
        ({"max_steps": "many"}, "max_steps='many'"),
        ({"tokens_per_step": -1}, "tokens_per_step=-1"),
        ({"resume": True}, "resume=True"),
        ({"resume": 2}, "no run at"),
        ({"blocks": 3}, "no list of blocks"),
        ({"batch": torch.zeros(2, T)}, "batch= is of type Tensor"),
        ({"folder": ""}, "not a path"),
        ({"folder": "a\0b"}, "not a path"),
        ({"model": None}, "type NoneType"),
        ({"model": nn.Sequential(nn.ReLU(), nn.ReLU())}, "no parameters"),
    ],
)
def test_wrong_arguments_are_named_and_leave_no_folder(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    wanted = {"model": Model(), "folder": tmp_path / "run", **arguments}
    with pytest.raises(ng.UserError, match=message):
        Watch(**wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "1.2"}, {"loss": [1.0, 2.0]}, {"loss": torch.tensor(1 + 2j)},
        {"loss": torch.ones((), device="meta")}, {"loss": 1.0, "lr": "high"},
        {"loss": 1.0, "grad_norm": [1.0]},
    ],
)  # fmt: skip
def test_a_step_s_wrong_values_are_named_and_count_for_nothing(
    values: dict[str, Any], tmp_path: Path
) -> None:
    watch = Watch(Model(), tmp_path / "run")
    with pytest.raises(ng.UserError, match=next(reversed(values))):
        watch.step(**values)
    watch.step(loss=1.0, lr=torch.tensor(0.5))  # type: ignore[arg-type]
    watch.close()
    (step,) = [e for e in log(tmp_path / "run") if isinstance(e, events.Step)]
    assert (step.step, step.loss, step.lr) == (1, 1.0, 0.5)


def test_a_block_put_in_place_of_another_is_watched_in_its_stead(tmp_path: Path) -> None:
    model = Model()
    watch = Watch(model, tmp_path / "run", every=1)
    for step in range(3):
        loss_of(model, step)
        watch.step(loss=1.0)
        if step == 0:
            model.stack[1] = Block()
            with torch.no_grad():
                for p in model.stack[1].parameters():
                    p.fill_(3.0)
    watch.close()
    last = samples(tmp_path / "run")[-1].stats
    assert last["weight_rms"][1] == 3.0
    assert len(last["resid_rms"]) == len(model.stack)


def test_fewer_blocks_than_before_end_the_statistics_with_a_note(tmp_path: Path) -> None:
    model = Model()
    watch = Watch(model, tmp_path / "run", every=1)
    for step in range(4):
        loss_of(model, step)
        watch.step(loss=1.0)
        if step == 1:
            model.stack = nn.ModuleList(list(model.stack)[:1])
    watch.close()
    assert [e.step for e in samples(tmp_path / "run")][:2] == [1, 2]
    notes = [e.message for e in log(tmp_path / "run") if isinstance(e, events.Note)]
    assert sum("replaced by others" in note for note in notes) == 1


def test_a_frozen_block_has_no_gradient_and_no_update_but_the_others_have(tmp_path: Path) -> None:
    model = Model()
    model.stack[0].requires_grad_(False)
    train(model, tmp_path / "run", steps=3, every=1)
    notes = [e.message for e in log(tmp_path / "run") if isinstance(e, events.Note)]
    (note,) = [note for note in notes if "frozen" in note]
    assert note.startswith("no updates of 1 block, the first is 0")
    for found in samples(tmp_path / "run"):
        for name in ("grad_norm", "update_ratio"):
            first, *others = found.stats[name]
            assert math.isnan(first)
            assert all(map(math.isfinite, others))
        assert all(map(math.isfinite, found.stats["weight_rms"]))


@pytest.mark.parametrize(
    "command",
    [
        "train watched --resume", "replay watched 1", "sample --run watched",
        "eval --run watched", "export --run watched", "runs diff watched watched",
    ],
)  # fmt: skip
def test_what_only_its_own_program_can_do_is_refused_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    train(Model(), Path("runs/watched"), steps=2, every=1)
    assert programs.nanogpt(*command.split()) == 2
    assert "run watched holds no recipe.toml" in capfd.readouterr().err


def test_a_generator_that_is_closed_has_stopped(tmp_path: Path) -> None:
    def loop() -> Any:
        with Watch(Model(), tmp_path / "run") as watch:
            while True:
                watch.step(loss=1.0)
                yield

    steps = loop()
    next(steps)
    steps.close()
    assert [e.reason for e in log(tmp_path / "run") if isinstance(e, events.RunEnded)] == [
        "stopped"
    ]
