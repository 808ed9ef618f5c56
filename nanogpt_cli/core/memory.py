"""Keeping freed memory in the process, where the C library can be told to."""

from __future__ import annotations

import ctypes
import functools
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_PAD = 1 << 26
_LARGEST = 1 << 30


@functools.cache
def keep_freed() -> bool:
    """Let this process reuse the activations it freed; whether that could be arranged.

    glibc returns large blocks to the system at once and gets them back as pages that are cleared
    on first touch: with it, a step of a small model spends a tenth of its time in page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, _PAD))
    return all(mallopt(key, value) for key, value in wanted)
