"""``nanogpt bench``: every speed this project speaks of, measured again by anyone."""
