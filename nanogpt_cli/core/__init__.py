"""Model, trainer, sampler and inspection. Never prints, exits or knows a terminal."""
