"""Python's garbage collector at rest while a command imports and loads."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def unswept() -> Iterator[None]:
    """Import and load without garbage collections, and never look at what was loaded again.

    While PyTorch is imported, Python would go through hundreds of thousands of objects, all of
    which stay, several times, and once more at the end of the process.
    """
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if swept:
            gc.enable()
