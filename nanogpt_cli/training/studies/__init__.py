"""Short runs and single steps that answer a question about a recipe or a run."""
