"""Run folders on other machines, followed through ``ssh`` into a copy that the dashboard reads."""
