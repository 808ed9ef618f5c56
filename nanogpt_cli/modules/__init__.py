"""Modules of any architecture: the residual stream, roles of parameters, and how they start."""
