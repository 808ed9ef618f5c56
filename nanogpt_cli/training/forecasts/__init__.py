"""What a recipe will need, without running it: memory, work, time on a GPU."""
