"""From any text to token files. Never imports torch."""
