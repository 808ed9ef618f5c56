"""Calling the ``tokenizers`` library so that no untrusted file can end the program.

Its Rust code panics where Python would raise. A panic arrives as a ``PanicException``, which is not
an ``Exception``, after a message was printed to file descriptor 2. So a file is tried on short
texts when it is loaded, with that descriptor silenced, and refused if one of them causes a panic. A
panic that only a later text causes also becomes a ``UserError``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import foreign_tokenizer
from nanogpt_cli.text.tokenizers.foreign_tokenizer import Refused

if TYPE_CHECKING:
    import tokenizers

_SAMPLE: Final = "Hello,  world! It's 1234\r\n\tna\u00efve \u65e5\u672c\u8a9e \U0001f642\n\n "
# A character of each class that word patterns distinguish, and of each script that they name.
_CLASSES: Final = "aA1.'_\u00e9\u0301\u65e5\U0001f642 \n\t"
_SCRIPTS: Final = "\u03b1\u0436\u05d0\u0639\u0905\u0e01\u10d0\u3042\u30a2\uac00"
# Backtracking that doubles with every repetition is over the engine's limit long before 64, cubic
# backtracking before 1024; the linear patterns of published tokenizers are far from it.
_REPEATED: Final = 64
_LONG: Final = 1024
_MOST_LITERALS: Final = 20
_MOST_ATOMS: Final = 48
_SERDE_POSITION: Final = re.compile(
    r" at line \d+ column \d+$"
)  # of a text that the user never sees
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def calling(failure: str) -> Iterator[None]:
    """Turn whatever the library raises, panics included, into a message of one line.

    Args:
        failure: the beginning of the message; the library's own message follows after a colon.

    Raises:
        UserError: in place of the library's exceptions.
    """
    try:
        yield
    except (
        BaseException
    ) as error:  # the library raises plain Exception, and a panic is not even that
        if not (type(error) is Exception or _is_panic(error)):
            raise
        said = _SERDE_POSITION.sub("", str(error)).strip().partition("\n")[0]
        raise UserError(
            f"{failure}: {said[:200]}", "repair its file, or give another one with --tokenizer"
        ) from None


def load(value: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's object for the content of a ``tokenizer.json``.

    Raises:
        UserError: ``foreign_tokenizer.check`` or the library refuses the content, or it fails on
            one of the test texts.
    """
    import tokenizers

    foreign_tokenizer.check(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise Refused("a text in it", f"holds {wrong!r}: half a surrogate pair") from None
    with _without_panic_messages():
        with calling("not a Hugging Face tokenizer"):
            library = tokenizers.Tokenizer.from_str(text)
        _compare_added_tokens(library, value)
        for probe in (_SAMPLE, *_probes(foreign_tokenizer.patterns(value))):
            # An ordinary error, such as a character without a token, concerns this text only.
            with (
                calling(f"it fails on a text such as {probe[:12]!r}"),
                contextlib.suppress(Exception),
            ):
                found = library.encode_batch_fast([probe], add_special_tokens=False)[0]
                library.decode(found.ids, skip_special_tokens=False)
    return library


def _compare_added_tokens(library: tokenizers.Tokenizer, value: dict[str, Any]) -> None:
    """Refuse an added token whose id is taken: the library would give it another id."""
    for index, added in enumerate(value.get("added_tokens") or []):
        id = library.token_to_id(added["content"])
        if id != added["id"]:
            raise Refused(
                f"added_tokens[{index}]",
                f"gives {added['content']!r:.60} the id {added['id']}; by the vocabulary and the "
                f"order of this list it has {'none' if id is None else id}",
            )


def _probes(patterns: list[str]) -> Iterator[str]:
    """Texts that make a pattern with unbounded backtracking fail.

    Such a pattern repeats something that it can match in two ways. So every literal in it, and a
    character of each class, is repeated alone and in pairs before an end that does not match. The
    literals follow once more, because the engine does not start unless those it requires occur.
    """
    if not patterns:
        return
    found = (word for pattern in patterns for word in re.findall(r"\w+|[^\w\s]", pattern))
    literals = sorted({word[:_REPEATED] for word in found}, key=lambda word: (len(word), word))
    literals = literals[:_MOST_LITERALS]
    end = "\0" + "".join(literals)
    letters = (letter for word in literals for letter in word)
    atoms = [*dict.fromkeys((*_CLASSES, *literals, *letters))][:_MOST_ATOMS]
    for atom in (*atoms, *_SCRIPTS):
        yield atom * (_LONG // len(atom)) + end
    for pair in itertools.combinations(atoms, 2):
        yield "".join(pair) * _REPEATED + end


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # pyo3 exports no such name


@contextlib.contextmanager
def _without_panic_messages() -> Iterator[None]:
    """Discard everything written to file descriptor 2, by other threads as well."""
    with _one_at_a_time:
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
