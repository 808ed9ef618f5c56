"""``nanogpt train``: what a call is to do, the trainer's processes, and lines on a terminal."""
