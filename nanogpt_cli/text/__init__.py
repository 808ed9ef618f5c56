"""Turning text into token files, and the tokenizers. Never imports torch."""
