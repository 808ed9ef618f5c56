"""Modules from their origin, with values part by part, and how their initial values are drawn."""
