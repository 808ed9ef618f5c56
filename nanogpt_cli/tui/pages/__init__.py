"""The pages of the dashboard, one module each, with the panes that only one page has."""
