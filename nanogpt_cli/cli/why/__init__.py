"""``nanogpt why``: its command, its page and its JSON."""
