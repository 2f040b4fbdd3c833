"""Server optimizers: what becomes of the combined update before it is added to the model.

Local optimizers are in `clients/work`.
"""
