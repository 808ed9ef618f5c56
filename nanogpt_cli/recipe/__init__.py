"""Recipes: their sections with every default, reading their files, and writing new ones."""

from nanogpt_cli.recipe.sections import (
    LARGEST_THETA,
    MOST_CHANNELS,
    MOST_LAYERS,
    MOST_ROWS,
    SMALLEST_EPS,
    Count,
    Data,
    Log,
    Model,
    NonNegative,
    Optim,
    Positive,
    Rate,
    Recipe,
    Run,
    Sample,
    Section,
    Share,
    Size,
    Stats,
    Train,
)

__all__ = [
    "LARGEST_THETA", "MOST_CHANNELS", "MOST_LAYERS", "MOST_ROWS", "SMALLEST_EPS", "Count", "Data",
    "Log", "Model", "NonNegative", "Optim", "Positive", "Rate", "Recipe", "Run", "Sample",
    "Section", "Share", "Size", "Stats", "Train",
]  # fmt: skip
