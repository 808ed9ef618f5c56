"""The dashboard: a reader of run folders."""
