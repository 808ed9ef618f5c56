"""The GPT: its architecture, parameters, dropout and accounting."""
