"""Recipes: their sections with every default, reading their files, and writing new ones."""

from nanogpt_cli.recipe.sections import (
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
    "Count", "Data", "Log", "Model", "NonNegative", "Optim", "Positive", "Rate", "Recipe", "Run",
    "Sample", "Section", "Share", "Size", "Stats", "Train",
]  # fmt: skip
