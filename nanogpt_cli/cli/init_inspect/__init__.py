"""``nanogpt init-inspect``: its command, its input, its studies, and what it prints and writes."""
