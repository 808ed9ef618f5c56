"""``nanogpt explain``: its command, its pages, and the model that is asked about."""
