"""The cached path draws the tokens of the naive path, whatever the batch, length or seed."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cached_models import MODERN, V, make

from nanogpt_cli import host
from nanogpt_cli.machine import products
from nanogpt_cli.model.gpt import GPT, Multipliers
from nanogpt_cli.sampling import decode, decode_graph, sampler
from nanogpt_cli.sampling.decode import Decoder, window_start
from nanogpt_cli.sampling.sampler import GenerationConfig, Token, generate, reference_logits
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.sampling.weights import Weights

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> GPT:
    return make()


@pytest.fixture(scope="module")
def packed(model: GPT) -> Weights:
    weights = Weights.of(model)
    weights.pack()
    return weights


def ids_of(tokens: list[Token]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for token in tokens:
        assert token.position == len(found[token.prompt, token.sample])
        found[token.prompt, token.sample].append(token.id)
    return dict(found)


def run(
    model: GPT, prompts: list[list[int]], generation: GenerationConfig
) -> dict[tuple[int, int], list[int]]:
    return ids_of(list(generate(model, prompts, generation)))


SETTINGS = [
    GREEDY,
    Sampling(temperature=1.0, top_k=0),
    Sampling(temperature=0.8, top_k=5),
    Sampling(temperature=1.3, top_k=0, top_p=0.7),
    Sampling(temperature=0.9, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
]


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("context", ["slide", "roll"])
def test_cached_equals_naive_across_the_context_boundary(
    model: GPT, packed: Weights, sampling: Sampling, context: sampler.Context
) -> None:
    prompts = [[1], [5, 6, 7], list(range(20)), list(range(24)), list(range(40))]
    generation = GenerationConfig(30, samples=2, sampling=sampling, vocab_size=57, context=context)
    naive = run(model, prompts, replace(generation, cached=False))
    assert run(model, prompts, generation) == naive
    assert run(model, prompts, replace(generation, weights=packed)) == naive
    alone = run(model, prompts[:1], replace(generation, weights=packed, samples=1))
    assert alone[0, 0] == naive[0, 0]


@pytest.mark.parametrize("context", ["slide", "roll"])
def test_todays_parts_draw_the_same_tokens_cached_and_naive(context: sampler.Context) -> None:
    """Beyond the block, cached keys lack what the new window has forgotten: it is read anew."""
    model = make(**MODERN)
    weights = Weights.of(model)
    weights.pack()
    prompts = [[1], [5, 6, 7], list(range(20)), list(range(40))]
    sampling = Sampling(temperature=1.0, top_k=0)
    generation = GenerationConfig(30, samples=2, sampling=sampling, vocab_size=57, context=context)
    naive = run(model, prompts, replace(generation, cached=False))
    assert run(model, prompts, generation) == naive
    assert run(model, prompts, replace(generation, weights=weights)) == naive
    alone = run(model, prompts[:1], replace(generation, weights=weights, samples=1))
    assert alone[0, 0] == naive[0, 0]
    shape = Decoder(weights, 3).cache.shape
    assert shape == (3, 3, 2, 2, 24, 8)  # layers, texts, key and value, kv heads, positions, D


def test_cached_equals_naive_on_many_seeds(model: GPT) -> None:
    for seed in range(40):
        generation = GenerationConfig(12, sampling=Sampling(temperature=1.5, top_k=20), seed=seed)
        assert run(model, [[seed]], generation) == run(
            model, [[seed]], replace(generation, cached=False)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False, "activation": "gelu_tanh"},
        {"activation": "swiglu", "tied": False},
        {"activation": "relu2", "multipliers": Multipliers(3.0, 0.5, 0.2, 0.25)},
        MODERN,
        MODERN | {"n_kv_head": 1, "bias": "qkv", "qk_norm": False, "n_embd": 48, "hidden": 31},
        {"position": "rope", "multipliers": Multipliers(3.0, 0.5, 0.2, 0.25)},
        {"norm": "rms", "activation": "geglu", "norm_eps": 1e-2, "n_kv_head": 4},
        {"qk_norm": True, "bias": False},
        MODERN | {"head_dim": 12, "n_kv_head": 1},
        MODERN | {"head_dim": 16, "n_head": 6, "n_kv_head": 3, "bias": "qkv"},
    ],
)
@pytest.mark.parametrize("packing", [False, True])
def test_every_architecture_decodes_as_its_module_does(
    changes: dict[str, object], packing: bool
) -> None:
    model = make(**changes)
    ids = torch.randint(0, V, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    decoder = Decoder(Weights.of(model), 2)
    logits = [decoder.prefill([0, 1], [ids[:3], ids[:3]])]
    logits += [decoder.step([0, 1], [ids[n]] * 2, [n] * 2) for n in range(3, 24)]
    weights = Weights.of(model)
    if packing:
        weights.pack()
    single = Decoder(weights, 1)
    single.prefill([0], [ids[:3]])
    for n, both in enumerate(logits, start=3):
        expected = torch.from_numpy(reference_logits(model, ids[:n]))
        torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both[1], expected, rtol=1e-4, atol=1e-4)
        if n > 3:
            one = single.step([0], [ids[n - 1]], [n - 1])[0]
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    whole = model(torch.tensor([ids]))[0][0, -1]
    torch.testing.assert_close(logits[-1][0], whole, rtol=1e-4, atol=1e-4)
    single.weights.pack()  # from one step to the next, as when the threads have been chosen
    for n in range(4, 24):
        one = single.step([0], [ids[n - 1]], [n - 1])
        torch.testing.assert_close(one, logits[n - 3][:1], rtol=1e-4, atol=1e-4)


def test_ties_are_decided_on_naive_logits() -> None:
    """Each token has a twin with the same embedding: the best two tie, and so does top-k's edge."""
    tied = make()
    with torch.no_grad():
        tied.transformer.wte.weight[1::2] = tied.transformer.wte.weight[:-1:2]
    generation = GenerationConfig(20, samples=6, sampling=Sampling(temperature=1.0, top_k=3))
    for sampling in (generation.sampling, GREEDY):
        cached = replace(generation, sampling=sampling)
        assert run(tied, [[30]], cached) == run(tied, [[30]], replace(cached, cached=False))


def test_sample_three_of_eight_is_sample_three_of_four(model: GPT) -> None:
    generation = GenerationConfig(30, samples=8, sampling=Sampling(temperature=1.0))
    eight = run(model, [[1, 2]], generation)
    four = run(model, [[1, 2]], replace(generation, samples=4))
    alone = run(model, [[1, 2]], replace(generation, samples=1, first_sample=3))
    assert len({tuple(ids) for ids in eight.values()}) == 8
    assert all(eight[key] == ids for key, ids in four.items())
    assert alone[0, 3] == eight[0, 3]


def test_seeds_differ_and_repeat(model: GPT) -> None:
    generation = GenerationConfig(20, sampling=Sampling(temperature=1.0))
    first = run(model, [[1]], generation)
    assert run(model, [[1]], generation) == first
    assert run(model, [[1]], replace(generation, seed=1)) != first


def test_padding_is_never_drawn() -> None:
    model = make()
    with torch.no_grad():
        model.transformer.wte.weight[57:] *= 20  # padded rows that would win otherwise
    hot = GenerationConfig(
        50, samples=4, sampling=Sampling(temperature=3.0, top_k=0), vocab_size=57
    )
    assert max(max(ids) for ids in run(model, [[1]], hot).values()) < 57
    unbounded = run(model, [[1]], replace(hot, vocab_size=None))
    assert max(max(ids) for ids in unbounded.values()) >= 57


def test_sequences_end_alone(model: GPT) -> None:
    """A stop id or the caller ends one sequence; the others go on with the same tokens."""
    generation = GenerationConfig(20, samples=4, sampling=Sampling(temperature=1.0))
    full = run(model, [[1]], generation)
    stop = full[0, 2][5]
    ended = run(model, [[1]], replace(generation, stop_ids=frozenset({stop})))
    for key, ids in full.items():
        assert ended[key] == (ids[: ids.index(stop) + 1] if stop in ids else ids)
    tokens = generate(model, [[1]], generation, done=lambda t: t.sample == 1 and t.position == 3)
    by_caller = ids_of(list(tokens))
    assert by_caller == {**full, (0, 1): full[0, 1][:4]}


def test_log_probabilities_are_those_of_the_model(model: GPT) -> None:
    generation = GenerationConfig(
        5, sampling=Sampling(temperature=0.5, top_k=2), logprobs=3, vocab_size=57
    )
    ids = [3, 4]
    for token in generate(model, [[3, 4]], generation):
        logits = model(torch.tensor([ids]))[0][0, -1, :57]
        expected = logits.log_softmax(0)
        assert token.logprob == pytest.approx(float(expected[token.id].detach()), abs=1e-4)
        top = expected.topk(3)
        assert [i for i, _ in token.runners_up] == top.indices.tolist()
        assert [p for _, p in token.runners_up] == pytest.approx(top.values.tolist(), abs=1e-4)
        ids.append(token.id)


@pytest.mark.parametrize("stride", [1, 4, 12])
def test_windows_end_at_the_last_token_and_fit(stride: int) -> None:
    previous = 0
    for length in range(1, 100):
        start = window_start(length, 24, stride)
        assert start % stride == 0
        assert 24 - stride < length - start <= 24 or (start == 0 and length <= 24)
        assert start in (previous, previous + stride)
        previous = start


def test_bad_prompts_are_refused(model: GPT) -> None:
    for prompts in ([[]], [[1], []], [[V]], [[-1]]):
        with pytest.raises(ValueError, match="prompt"):
            list(generate(model, prompts, GenerationConfig(1)))


@pytest.mark.parametrize("context", ["slide", "roll"])
def test_the_step_that_a_gpu_replays_draws_the_same_tokens(
    model: GPT, monkeypatch: pytest.MonkeyPatch, context: sampler.Context
) -> None:
    """Run as it is, which is what it does without CUDA; sequences end alone on the way."""
    used: list[int] = []
    monkeypatch.setattr(decode, "replays", lambda _: used.append(1) is None)
    prompts = [[1], [5, 6, 7], list(range(20))]
    for sampling in (GREEDY, Sampling(temperature=1.2, top_k=0)):
        generation = GenerationConfig(
            30, samples=2, sampling=sampling, context=context, stop_ids=frozenset(range(0, V, 9))
        )
        naive = run(model, prompts, replace(generation, cached=False))
        assert len({len(ids) for ids in naive.values()}) > 1
        assert run(model, prompts, generation) == naive
        alone = replace(generation, samples=1)
        assert run(model, prompts[:1], alone)[0, 0] == naive[0, 0]
    assert used


def test_a_step_can_be_replayed_when_it_depends_on_its_buffers_alone(model: GPT) -> None:
    """As capturing does: the same input twice is as good as once, and earlier logits stay."""
    decoder = Decoder(Weights.of(model), 2)
    decoder.prefill([0, 1], [[1, 2, 3]] * 2)
    replay = decode_graph.Replay(decoder._step_fixed, 2, torch.device("cpu"))
    with torch.inference_mode():
        first = replay([4, 5], [3, 3])
        kept = first.clone()
        assert torch.equal(replay([4, 5], [3, 3]), kept)
        replay([6, 7], [4, 4])
        assert torch.equal(first, kept)
    expected = torch.from_numpy(reference_logits(model, [1, 2, 3, 4]))
    torch.testing.assert_close(kept[0], expected, rtol=1e-4, atol=1e-4)


def test_a_step_that_cannot_be_captured_goes_on_as_it_is(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: decode_graph.Replay) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(decode_graph.Replay, "_captured", refused)
    replay = decode_graph.Replay(lambda t, p: t + p, 1, torch.device("cpu"))
    replay._eager_left = 2
    assert [int(replay([n], [1])) for n in range(5)] == [1, 2, 3, 4, 5]
    assert replay.failure == "operation not permitted"


def test_a_step_is_captured_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and the graph are those of cuda:1 while cuda:0 is the current device."""
    entered: list[tuple[str, object]] = [("device", torch.device("cuda:0"))]
    told: list[tuple[str, object, object]] = []

    def current(kind: str) -> object:
        return next((what for name, what in reversed(entered) if name == kind), None)

    @contextlib.contextmanager
    def inside(kind: str, what: object) -> Iterator[None]:
        entered.append((kind, what))
        yield
        entered.pop()

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_stream(self, other: Stream) -> None:
            assert self.device == other.device == current("device")

    def capture(graph: object, stream: Stream, **_: object) -> object:
        assert graph == ("graph", torch.device("cuda:1"))
        return inside("stream", stream)

    default = Stream(torch.device("cuda:1"))
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "device", lambda device: inside("device", device))
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "stream", lambda stream: inside("stream", stream))
    monkeypatch.setattr(cuda, "current_stream", lambda device: default)
    monkeypatch.setattr(cuda, "set_stream", lambda stream: told.append(("set", stream, None)))
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: ("graph", current("device")))
    monkeypatch.setattr(cuda, "graph", capture)

    def step(tokens: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        told.append(("step", current("device"), current("stream")))
        return tokens

    replay = decode_graph.Replay(step, 1, torch.device("cpu"))
    replay.tokens = SimpleNamespace(device=torch.device("cuda:1"))  # type: ignore[assignment]
    replay._captured()
    *steps, last = told
    assert [what for what, *_ in steps] == ["step"] * 3
    for _, device, stream in steps:
        assert device == torch.device("cuda:1")
        assert isinstance(stream, Stream)
        assert stream is not default
        assert stream.device == device
    assert len({stream for *_, stream in steps}) == 1
    assert last == ("set", default, None)


@pytest.mark.parametrize("cached", [True, False])
def test_sampling_multiplies_in_full_float32_within_a_run_of_tf32(
    model: GPT, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    used: list[str] = []

    def watched(target: type, name: str) -> None:
        plain = getattr(target, name)

        def call(*args: object, **kwargs: object) -> object:
            used.append(torch.get_float32_matmul_precision())
            return plain(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    for target, name in ((Decoder, "prefill"), (Decoder, "step"), (GPT, "head")):
        watched(target, name)
    monkeypatch.setattr(sampler, "RELATIVE_TOLERANCE", 1.0)  # every draw asks the naive path
    torch.set_float32_matmul_precision("high")
    try:
        for _ in generate(model, [[1, 2]], GenerationConfig(4, cached=cached)):
            assert torch.get_float32_matmul_precision() == "high"  # between tokens the run's own
    finally:
        torch.set_float32_matmul_precision("highest")
    assert used == ["highest"] * (8 if cached else 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_gives_the_logits_of_the_step(model: GPT) -> None:
    import copy

    weights = Weights.of(copy.deepcopy(model).cuda())
    captured, eager = Decoder(weights, 2), Decoder(weights, 2)
    for decoder in (captured, eager):
        decoder.prefill([0, 1], [[1, 2, 3], [4, 5, 6]])
    for n in range(3, 24):
        tokens = [n, 2 * n]
        plain = eager._step_many([0, 1], tokens, [n, n], whole=True)
        torch.testing.assert_close(captured.step([0, 1], tokens, [n, n]), plain)
    assert captured._replay is not None
    assert captured._replay.failure == ""


@pytest.mark.parametrize("has_room", [False, True])
def test_packed_weights_are_the_weights(
    model: GPT, has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows, and whether or not there is room for oneDNN's copies."""
    plain, packed = Weights.of(model), Weights.of(model)
    assert plain.packed_bytes == 0
    size = sum(m.nbytes for m in plain.matrices)
    group = host.ControlGroup(limit=size * (9 if has_room else 5), used=0)
    monkeypatch.setattr(host, "control_group", lambda: group)
    assert packed.can_pack()
    packed.pack()
    shapes = [m.weight.shape for m in plain.matrices]
    tiles = sum(4 * -(-out // 16) * 16 * inputs for out, inputs in shapes)
    ordered = has_room and products.ordered(torch.ones(2, 2)) is not None
    assert packed.packed_bytes == tiles + (size if ordered else 0)
    for one, other in zip(packed.matrices, plain.matrices, strict=True):
        for rows in (1, 2, 8, 9):
            x = torch.randn(rows, 3 if rows == 2 else 1, one.weight.shape[1])
            torch.testing.assert_close(one(x), other(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_tiles_do_not_fit_is_left_as_it_is() -> None:
    assert not Weights.of(make(n_embd=36)).can_pack()
    assert not Weights.of(make(), torch.bfloat16).can_pack()
    assert Weights.of(make()).can_pack()


def test_memory_left_by_others_does_not_reach_the_logits(model: GPT) -> None:
    """A shorter row's masked positions are read too, and 0 times NaN is NaN."""
    for _ in range(20):
        decoder = Decoder(Weights.of(model), 2)
        logits = decoder.prefill([0], [[1, 2, 3, 4, 5]]), decoder.prefill([1], [[1]])
        assert all(one.isfinite().all() for one in logits)
        assert decoder.step([0, 1], [7, 7], [5, 1]).isfinite().all()
        decoder.cache.fill_(float("nan"))  # what the allocator hands out next


def test_weights_are_shared_not_copied(model: GPT) -> None:
    decoder = Decoder(Weights.of(model), 1)
    assert decoder.weights.wte.data_ptr() == model.transformer.wte.weight.data_ptr()
    attn = model.transformer.h[0].attn.c_attn  # type: ignore[union-attr]
    assert decoder.weights.layers[0].c_attn.weight.data_ptr() == attn.weight.data_ptr()  # type: ignore[union-attr]


def test_greedy_equals_transformers_for_200_tokens(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    from nanogpt_cli.interop import huggingface
    from nanogpt_cli.interop.source import from_model

    model = make(seed=3, n_layer=4, n_embd=64, block_size=256, vocab_size=211)
    huggingface.write(from_model(model, None), tmp_path, lambda _: None)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    prompt = [5, 17, 100]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=200, do_sample=False, pad_token_id=0
    )
    ours = run(model, [prompt], GenerationConfig(200, sampling=GREEDY))[0, 0]
    assert len(set(ours)) > 20
    assert prompt + ours == expected[0].tolist()


def test_ties_do_reach_the_naive_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is not decoration: a tied model asks for naive logits, ordinary draws hardly do."""
    asked = []
    plain = sampler.reference_logits
    monkeypatch.setattr(sampler, "reference_logits", lambda *a: (asked.append(1), plain(*a))[1])
    model = make()
    run(model, [[30]], GenerationConfig(100, sampling=Sampling(temperature=1.0)))
    assert len(asked) <= 3
    with torch.no_grad():
        model.transformer.wte.weight[1::2] = model.transformer.wte.weight[:-1:2]
    asked.clear()
    run(model, [[30]], GenerationConfig(20, sampling=GREEDY))
    assert len(asked) == 20
