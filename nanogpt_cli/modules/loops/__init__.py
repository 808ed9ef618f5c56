"""Layer statistics of other people's training loops."""
