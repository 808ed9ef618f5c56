"""Prompts from files are taken as an editor shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogpt_cli.cli.sample import prompts as sample_prompts
from nanogpt_cli.errors import UserError


def gather(*, prompt_file: Path | None = None, prompts: Path | None = None) -> list[str]:
    found = sample_prompts.gather(None, prompt_file, prompts, ask_stdin=False)
    return [prompt.text for prompt in found or []]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("ROMEO:\n".encode(encoding))
    assert gather(prompt_file=path) == ["ROMEO:\n"]
    path.write_bytes("one\r\ntwo\r\n".encode(encoding))
    assert gather(prompts=path) == ["one", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_bytes('"one"\n{"prompt": "two"}\n'.encode(encoding))
    assert gather(prompts=lines) == ["one", "two"]


def test_only_newlines_part_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\u2028still one\x85and\x0bone\x0c\n\ntwo", encoding="utf-8")
    assert gather(prompts=path) == ["one\u2028still one\x85and\x0bone\x0c", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('"a\u2028b"\n"c"\n3\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 3 contains no prompt"):
        gather(prompts=lines)


def test_text_in_another_encoding_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("A prompt of some words".encode("utf-16-le"))
    with pytest.raises(
        UserError, match=r"prompt\.txt is not text: 50% of it are zero bytes"
    ) as caught:
        gather(prompt_file=path)
    assert "it looks like utf-16-le" in caught.value.hint
