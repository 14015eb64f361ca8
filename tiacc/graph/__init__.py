"""The graph of a model: import from TorchScript, types of values, export."""
