"""``nanogpt sample``: its command, its prompts, one session of sampling, and what it prints."""
