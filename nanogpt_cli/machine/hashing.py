"""Random bits from a hash of counters and keys, so that no generator state has to be saved.

The hash is SplitMix64's finaliser (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]
_GAMMA = 0x9E3779B97F4A7C15


def mix(values: _U64 | int, *keys: int | _U64) -> _U64:
    """Hash ``values`` (uint64, any shape) under keys to uniform uint64.

    A key is an integer for all of them, or an array with one for each.
    """
    x = np.asarray(values, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in (*keys, 0):
            if isinstance(key, np.ndarray):
                x = x + (key + np.uint64(1)) * np.uint64(_GAMMA)
            else:
                x = x + np.uint64((key + 1) * _GAMMA % 2**64)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x
