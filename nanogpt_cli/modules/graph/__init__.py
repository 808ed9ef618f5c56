"""The graph of one forward pass: residual stream, blocks, and roles of the parameters."""
