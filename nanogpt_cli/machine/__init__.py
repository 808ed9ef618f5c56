"""What computing stands on: device and number format, processes, threads, memory."""
