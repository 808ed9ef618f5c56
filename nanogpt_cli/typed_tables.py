"""Tables of JSON from files, checked once where they are read: later code may trust their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class Table(BaseModel):
    """Some keys of a table; what other versions write besides stays as it is."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def check(table: type[Table], values: Mapping[str, Any]) -> None:
    """Compare values with the types of ``table``.

    Raises:
        ValueError: a value is missing, of another type or out of range; the message names its key.
    """
    try:
        table.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = _REASONS.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{key:.80}: {reason:.200}") from None


# Where pydantic's own words speak of Python.
_REASONS = {
    "missing": "this key is missing",
    "model_type": "a table is needed here",
    "dict_type": "a table is needed here",
    "extra_forbidden": "this key is unknown",
}
