"""One run: its steps, checkpoints, statistics, alarms, forecasts and replays."""
