"""What a person may ask: a recipe's sections, its files, and writing new ones."""

from nanogpt_cli.recipe.sections import (
    MOST_CHANNELS,
    MOST_LAYERS,
    MOST_ROWS,
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
    "MOST_CHANNELS", "MOST_LAYERS", "MOST_ROWS", "Count", "Data", "Log", "Model", "NonNegative",
    "Optim", "Positive", "Rate", "Recipe", "Run", "Sample", "Section", "Share", "Size", "Stats",
    "Train",
]  # fmt: skip
