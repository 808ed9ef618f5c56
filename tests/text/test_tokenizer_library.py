"""Whatever the ``tokenizers`` library raises becomes one line, and what it did not raise passes."""

from __future__ import annotations

import json

import families
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import tokenizer_library


def test_an_error_of_the_library_becomes_one_line() -> None:
    value = json.loads(json.dumps(families.tokenizer_json("unigram")))
    value["model"]["unk_id"] = None  # a character without a token is then an error
    made = tokenizer_library.load(value)
    with pytest.raises(UserError) as caught, tokenizer_library.calling("x.json cannot encode this"):
        made.encode_batch_fast(["\u65e5"])
    assert caught.value.message.startswith("x.json cannot encode this: ")
    assert "\n" not in caught.value.message
    assert "--tokenizer" in caught.value.hint


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("ours")])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)), tokenizer_library.calling("x.json"):
        raise error


def test_a_file_that_the_library_refuses() -> None:
    value = {**families.tokenizer_json("wordpiece"), "decoder": {"type": "Metaspace"}}
    with pytest.raises(UserError, match="not a Hugging Face tokenizer"):
        tokenizer_library.load(value)
