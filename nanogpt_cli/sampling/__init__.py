"""From a model to text: decoding, filters, draws, and how fast they are."""
