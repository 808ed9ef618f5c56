"""What happened: the run folder, its events, and those who write and read them."""
