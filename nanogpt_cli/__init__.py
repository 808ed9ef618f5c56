"""nanogpt-cli: understand, train, watch, sample and export GPT-2-style language models."""

__version__ = "0.1.0"
