"""Short answers in plain words, with numbers that are computed when they are asked for."""
