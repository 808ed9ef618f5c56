"""One module per foreign format, in and out."""
