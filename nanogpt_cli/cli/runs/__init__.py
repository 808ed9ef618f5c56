"""``nanogpt runs``: lists, notes, comparisons and pictures of runs."""
