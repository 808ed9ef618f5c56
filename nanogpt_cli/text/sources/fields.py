"""Which text of a record is meant: a field, a field of a field, or the messages of a chat.

The name of a field may be a path: ``text.body`` is the field ``body`` of the object ``text``. A
field whose own name has the dot comes first.

A chat is a list of messages, each with ``role`` and ``content`` or, as in ShareGPT, with ``from``
and ``value``. Its text is a line ``role: content`` for each message, roles and contents as they
stand in the file. A message without content, such as a call of a tool, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_MESSAGES: Final = (("role", "content"), ("from", "value"))
_CALLS: Final = ("tool_calls", "function_call")  # with one of them a message needs no content
_DEEPEST: Final = 4  # levels of a record that are listed for the user


def look_up(record: Mapping[str, Any], path: str) -> Any:
    """The value at a path; None if the path leads through a null.

    Raises:
        KeyError: there is none.
    """
    if path in record:
        return record[path]
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        head, rest = ".".join(parts[:count]), ".".join(parts[count:])
        if head not in record:
            continue
        inner = record[head]
        if inner is None:
            return None
        if isinstance(inner, dict) and has(inner, rest):
            return look_up(inner, rest)
    raise KeyError(path)


def has(record: Mapping[str, Any], path: str) -> bool:
    """Whether ``look_up`` finds anything at a path."""
    try:
        look_up(record, path)
    except KeyError:
        return False
    return True


def is_chat(value: Any) -> bool:
    """Whether a value is a list whose first element is a message; also an empty list."""
    return isinstance(value, list) and (not value or _keys(value[0]) is not None)


def chat(messages: list[Any]) -> str:
    """The text of a chat.

    Raises:
        ValueError: a message is none; the error says which and why.
    """
    return "".join(_line(message, number) for number, message in enumerate(messages, 1))


def _keys(message: Any) -> tuple[str, str] | None:
    """Under which keys a message has its speaker and its content."""
    if not isinstance(message, dict):
        return None
    for speaker, content in _MESSAGES:
        if speaker in message and (content in message or any(key in message for key in _CALLS)):
            return speaker, content
    return None


def _line(message: Any, number: int) -> str:
    if (keys := _keys(message)) is None:
        raise ValueError(f"message {number:,} has neither role and content nor from and value")
    role, content = (message.get(key) for key in keys)
    if isinstance(content, list):
        content = "\n".join(_parts(content, number))
    if content is None or content == "":
        return ""
    for key, value in zip(keys, (role, content), strict=True):
        if not isinstance(value, str):
            raise ValueError(f"{key!r} of message {number:,} is {kind(value)}, not text")
    return f"{role}: {content}\n"


def _parts(content: list[Any], number: int) -> Iterator[str]:
    """The texts of a content in parts, as messages with pictures have it."""
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(f"a part of message {number:,} is not text")
        yield part["text"]


def kind(value: Any) -> str:
    """JSON's word for what a value is; Python's own words mean nothing to who wrote the file."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}
    return kinds.get(type(value), "a number")


def texts(record: Mapping[str, Any]) -> dict[str, str]:
    """The paths of a record that lead to text, each with it."""
    return dict(_texts(record, 1))


def _texts(record: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict) and depth < _DEEPEST:
            yield from ((f"{key}.{path}", text) for path, text in _texts(value, depth + 1))
        elif value and is_chat(value):
            try:
                yield key, chat(value)
            except ValueError:
                continue
