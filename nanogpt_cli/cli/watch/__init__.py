"""``nanogpt watch``: the dashboard here, in a browser and of other machines, and what it prints."""
