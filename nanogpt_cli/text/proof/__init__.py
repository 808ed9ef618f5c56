"""Proving that the tokens of a split stand for the bytes of its source."""
