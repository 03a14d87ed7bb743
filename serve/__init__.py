"""Packing the model archive, starting, stopping and calling TorchServe: `python -m serve COMMAND ...`."""
