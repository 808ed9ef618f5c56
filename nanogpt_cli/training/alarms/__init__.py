"""From what a run reports to alarms: a layer, a likely cause, an advice."""
