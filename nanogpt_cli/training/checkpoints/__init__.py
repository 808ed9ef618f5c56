"""Checkpoints: whole or absent folders of safetensors, which ones a run has, and which go."""
