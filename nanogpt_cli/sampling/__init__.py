"""From a model to text: decoding, filters, draws, and the measurement of their speed."""
