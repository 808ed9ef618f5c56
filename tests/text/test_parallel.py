"""Encoding on several threads, each with its own copy of the pattern, gives the same tokens."""

import threading

import pytest

from nanogpt_cli.text.parallel import ordered_map
from nanogpt_cli.text.tokenizers import factory, tiktoken_bpe


def test_threads_agree_with_the_main_thread(asset_cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asset_cache("gpt2-vocab.bpe")
    made = factory.get("gpt2")
    monkeypatch.setattr(tiktoken_bpe, "_COPY_PAYS", 1000)
    texts = [f"The {i}th text isn't long, " * 20 for i in range(40)]
    found = [ids.tolist() for ids in ordered_map(made.encode_array, texts, 3)]
    assert found == [made.encode(text) for text in texts]


def test_order_is_kept_and_little_is_in_flight() -> None:
    started: list[int] = []
    finish = threading.Event()

    def items():
        for i in range(20):
            started.append(i)
            yield i

    def work(i: int) -> int:
        if i == 0:
            assert finish.wait(30)
        return i * i

    results = ordered_map(work, items(), 2)
    threading.Thread(target=finish.set).start()
    assert next(results) == 0
    assert len(started) <= 4
    assert list(results) == [i * i for i in range(1, 20)]


def test_errors_come_in_order_and_stop_the_rest() -> None:
    def work(i: int) -> int:
        if i >= 3:
            raise ValueError(i)
        return i

    results = ordered_map(work, range(100), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)
