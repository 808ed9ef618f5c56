"""Modules made from configurations, stored weights and factories."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from survey import small_config
from torch import nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.starts import user_code
from nanogpt_cli.modules.starts.build import Built, accepts, build, unwrapped
from nanogpt_cli.modules.starts.fresh import unguarded

transformers = pytest.importorskip("transformers", minversion="5.0")

# Norms, positions, heads, experts and ties of every kind, in the order of the library's names.
TYPES = ("falcon", "gemma3_text", "gpt2", "gpt_neox", "llama", "mixtral", "opt", "qwen2_moe")
IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    library: Any = transformers.utils.logging
    library.disable_progress_bar()
    library.set_verbosity_error()
    yield
    library.enable_progress_bar()


def written(folder: Path, model_type: str, **more: Any) -> Path:
    config = small_config(model_type, **more)
    config.save_pretrained(folder)
    return folder


def library_model(folder: Path, seed: int = 0) -> Any:
    """The library's own fresh start."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    library: Any = transformers.AutoModelForCausalLM
    return library.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def same(some: nn.Module, other: nn.Module) -> bool:
    a, b = values(some), values(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.numeric
@pytest.mark.parametrize("model_type", TYPES)
def test_a_start_by_parts_is_a_start_of_the_library(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    built = build(str(tmp_path))
    assert built.fill is not None
    assert all(p.is_meta for p in built.module.parameters())
    ours, theirs = values(built.whole()), values(library_model(tmp_path))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = theirs[name]
        if bool((expected == expected.flatten()[0]).all()):
            assert torch.equal(value, expected), name
        else:  # two estimates of one std, each with the relative error √(2/n)/2 of normal entries
            error = (1 / (2 * value.numel())) ** 0.5
            assert abs(float(value.std() / expected.std()) - 1) < 6 * 2**0.5 * error, name


@pytest.mark.parametrize("model_type", TYPES)
def test_buffers_and_ties_are_the_librarys(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    built, theirs = build(str(tmp_path)), library_model(tmp_path)
    expected = dict(theirs.named_buffers())
    found = dict(built.module.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    built.whole().load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(built.module(IDS).logits, theirs(IDS).logits)
    tied = [n for n, _ in theirs.named_parameters(remove_duplicate=False)]
    assert tied == [n for n, _ in built.module.named_parameters(remove_duplicate=False)]
    assert len(values(built.module)) == len(values(theirs))


@pytest.mark.parametrize("model_type", TYPES)
def test_values_depend_on_the_seed_and_not_on_the_parts(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    whole = build(str(tmp_path), 1).whole()
    parts = build(str(tmp_path), 1)
    assert parts.fill is not None
    for path, module in reversed(list(parts.module.named_modules())):
        parts.fill(path, module, recurse=False)
    assert same(whole, parts.module)
    assert torch.equal(before, torch.random.get_rng_state())
    assert parts.redraw is not None
    assert same(whole, parts.redraw(1).whole())
    other = values(parts.redraw(2).whole())
    drawn = {n: v for n, v in values(whole).items() if v.numel() > 1 and float(v.std()) > 0}
    assert drawn
    assert not any(torch.equal(v, other[n]) for n, v in drawn.items())


def test_blocks_differ_from_each_other(tmp_path: Path) -> None:
    module = build(str(written(tmp_path, "llama"))).whole()
    stacks = [p for n, p in module.named_parameters() if n.endswith("q_proj.weight")]
    assert len(stacks) == 3
    assert not torch.equal(stacks[0], stacks[1])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("shard", ["50GB", "60kB"])
def test_stored_weights_are_those_of_from_pretrained(
    tmp_path: Path, model_type: str, shard: str
) -> None:
    written(tmp_path, model_type)
    library_model(tmp_path, 3).save_pretrained(tmp_path, max_shard_size=shard)
    built = build(str(tmp_path))
    assert built.trained
    assert built.redraw is None
    assert not built.notes
    library: Any = transformers.AutoModelForCausalLM
    theirs = library.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert same(built.whole(), theirs)
    with torch.no_grad():
        assert torch.equal(built.module(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("model_type, lean", [("deepseek_v3", True), ("apertus", True)])
def test_stored_buffers_are_loaded(tmp_path: Path, model_type: str, lean: bool) -> None:
    written(tmp_path, model_type)
    model = library_model(tmp_path, 3)
    persistent = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert persistent
    for name in persistent:
        model.get_buffer(name).fill_(0.25)
    model.save_pretrained(tmp_path)
    built = build(str(tmp_path))
    assert (built.fill is not None) == lean
    assert all(bool((built.module.get_buffer(name) == 0.25).all()) for name in persistent)
    with torch.no_grad():
        assert torch.equal(built.whole()(IDS).logits, model(IDS).logits)


def test_a_class_that_needs_values_is_built_whole(tmp_path: Path) -> None:
    built = build(str(written(tmp_path, "apertus")), 2)
    assert built.fill is None
    assert "gives no values to" in built.notes[0]
    with torch.no_grad():
        assert bool(built.module(IDS).logits.isfinite().all())
    assert built.redraw is not None
    assert same(built.module, built.redraw(2).module)
    assert not same(built.module, built.redraw(3).module)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written(tmp_path, "llama")
    library_model(tmp_path).save_pretrained(tmp_path)
    plain = build(str(tmp_path)).whole()
    file = tmp_path / "model.safetensors"
    save_file({f"_orig_mod.module.{n}": t for n, t in load_file(file).items()}, file)
    assert same(plain, build(str(tmp_path)).whole())


def test_a_head_stored_beside_its_embedding_is_untied(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written(tmp_path, "llama", tie_word_embeddings=True)
    library_model(tmp_path).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    embedding = stored["model.embed_tokens.weight"]
    save_file(stored | {"lm_head.weight": embedding.clone()}, file)
    tied: Any = build(str(tmp_path)).whole()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    save_file(stored | {"lm_head.weight": embedding + 1}, file)
    apart: Any = build(str(tmp_path)).whole()
    assert torch.equal(apart.lm_head.weight, embedding + 1)
    assert torch.equal(apart.model.embed_tokens.weight, embedding)


def refusal(origin: Path | str) -> UserError:
    with pytest.raises(UserError) as caught:
        build(str(origin)).whole()
    assert "\n" not in caught.value.message
    return caught.value


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, words in (
        ("{", "JSON"),
        ("[]", "not a JSON object"),
        ("{}", "model_type None"),
        ('{"model_type": "lama"}', "model_type 'lama'"),
        ('{"model_type": "lama\\u001b[31m"}', r"\x1b"),
        ('{"model_type": "vit"}', "causal language model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config.json"),
        ('{"model_type": "llama", "hidden_size": -4}', "config.json"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "1,000,000,000"),
        ('{"model_type": "gpt2", "n_embd": 10, "n_head": 3}', "config.json"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantised"),
    ):
        file.write_text(text)
        assert words in refusal(file).message
    assert "'llama'" in refusal_hint(file, '{"model_type": "lama"}')


def refusal_hint(file: Path, text: str) -> str:
    file.write_text(text)
    return refusal(file).hint


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    library_model(tmp_path).save_pretrained(tmp_path, max_shard_size="60kB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    content = shards[0].read_bytes()

    shards[0].write_bytes(content[:50])
    assert shards[0].name in refusal(tmp_path).message
    shards[0].unlink()
    assert shards[0].name in refusal(tmp_path).message
    shards[0].write_bytes(content)

    fewer = {n: f for n, f in listed["weight_map"].items() if f != shards[0].name}
    index.write_text(json.dumps({"weight_map": fewer}))
    assert "no values for" in refusal(tmp_path).message
    index.write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    assert "outside its folder" in refusal(tmp_path).message
    index.write_text(json.dumps({"weight_map": 3}))
    assert "weight_map" in refusal(tmp_path).message


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    library_model(tmp_path).save_pretrained(tmp_path)
    written(tmp_path, "llama", intermediate_size=80)
    assert "do not fit" in refusal(tmp_path).message


def test_pickles_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    error = refusal(tmp_path)
    assert "pickle" in error.message
    assert "save_pretrained" in error.hint


FACTORIES = """
import torch
from torch import nn

def make(width=4, *, bias=True):
    return nn.Linear(width, width, bias=bias)

def wrapped():
    return nn.DataParallel(make())

def words():
    return "no module"

def needs(size):
    return nn.Linear(size, size)

def leaves():
    raise SystemExit("bye")

def meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

def lost():
    with torch.device("meta"):
        return Bare()

def half():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4), Bare())

made = make(5)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "factories_of_a_test.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "factories_of_a_test", raising=False)
    return "factories_of_a_test"


def linear(built: Built) -> nn.Linear:
    assert isinstance(built.module, nn.Linear)
    return built.module


def test_factories_are_called_with_literals(factories: str) -> None:
    for place in (factories, f"{factories}.py"):
        assert linear(build(f"{place}:make")).in_features == 4
        made = linear(build(f"{place}:make(7, bias=False)"))
        assert made.in_features == 7
        assert not dict(made.named_parameters()).keys() - {"weight"}
        assert linear(build(f"{place}:wrapped")).in_features == 4
        assert linear(build(f"{place}:made")).in_features == 5
        assert not build(f"{place}:make").module.training


def test_a_factory_draws_at_its_seed(factories: str) -> None:
    one, again = build(f"{factories}:make", 1), build(f"{factories}:make", 1)
    assert same(one.module, again.module)
    assert one.redraw is not None
    assert not same(one.module, one.redraw(2).module)
    assert build(f"{factories}:made").redraw is None


def test_arguments_that_are_code_are_not_run(factories: str) -> None:
    for call in ("(open('x', 'w'))", "(*[1])", "(**{})", "(width=make)", "(1)(2)", "(1"):
        with pytest.raises(UserError):
            build(f"{factories}:make{call}")
    assert not Path("x").exists()


def test_what_a_factory_does_wrong_is_said(factories: str) -> None:
    for name, words in (
        ("words", "not an nn.Module"),
        ("needs", "needs arguments (size)"),
        ("leaves", "SystemExit: bye"),
        ("make(1, 2)", "TypeError"),
        ("absent", "has no 'absent'"),
        ("lost", "device meta"),
        ("half", "device meta"),
    ):
        assert words in refusal(f"{factories}:{name}").message
    assert "cannot import" in refusal("no_such_module_at_all:make").message
    assert "not a Python file" in refusal("absent.py:make").message


def test_a_module_left_on_meta_gets_values_by_its_own_functions(factories: str) -> None:
    module = build(f"{factories}:meta", 3).module
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert same(module, expected)


def test_a_compiled_module_is_unwrapped() -> None:
    inner = nn.Linear(2, 2)
    outer = nn.Module()
    outer._orig_mod = inner  # as torch.compile wraps
    assert unwrapped(outer) is inner


def test_origins_are_told_apart(tmp_path: Path) -> None:
    assert accepts("module:factory(1, 'a:b')")
    assert accepts("folder/file.py:make")
    assert not accepts("gpt2")
    assert not accepts(str(tmp_path))
    assert accepts(str(written(tmp_path, "llama")))
    assert accepts(str(tmp_path / "config.json"))
    assert not user_code.is_reference("runs/a")


@pytest.mark.parametrize("model_type", ["llama", "falcon_mamba", "nemotron_h"])
def test_parameters_that_loading_damages_are_found(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, model_type, rescale_prenorm_residual=True)
    model = library_model(tmp_path, 3)
    model.save_pretrained(tmp_path)
    library: Any = transformers.AutoModelForCausalLM
    loaded = values(library.from_pretrained(tmp_path))
    changed = {
        name for name, value in values(model).items() if not torch.equal(value, loaded[name])
    }
    with torch.device("meta"):
        empty = library.from_config(model.config)
    assert set(unguarded(empty)) == changed
    assert same(build(str(tmp_path)).whole(), model)  # as they are stored
