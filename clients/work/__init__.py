"""Local training: what a device does with its data and a model."""
