"""AdamW, Muon and the moving average of the weights, as functions of tensors."""
