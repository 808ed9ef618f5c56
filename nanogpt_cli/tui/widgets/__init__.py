"""Widgets that several pages use: charts, grids of charts, panes, histograms."""
