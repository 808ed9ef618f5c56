"""How a GPT starts: initial values drawn, predicted, measured and judged."""
