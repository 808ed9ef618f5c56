"""Tokenizers of every kind: their interface, their files, and what of a text they lose."""
