"""``nanogpt bench``: benchmarks that reproduce every speed this project claims."""
