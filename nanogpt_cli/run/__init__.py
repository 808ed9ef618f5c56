"""The record of a run: its folder, its events, and the code that writes and reads them."""
