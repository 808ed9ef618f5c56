"""The largest sizes of a model, for recipes and for configurations in files.

A larger number is a typing error or a damaged file, reported at once and not minutes later.
"""

from typing import Final

MOST_LAYERS: Final = 1000
LARGEST_THETA: Final = 1e12  # of rotary positions; far larger ones are infinite in float32
SMALLEST_EPS: Final = 1e-12  # of norms; far smaller numbers are zero in float32
MOST_CHANNELS: Final = 2**20  # and heads, and positions
MOST_ROWS: Final = 2**24
