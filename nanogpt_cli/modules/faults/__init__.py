"""A lint that sees structure in weights."""
