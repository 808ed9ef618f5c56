"""The machine a run computes on: device and number format, processes, threads, memory."""
