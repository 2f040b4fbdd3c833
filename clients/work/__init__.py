"""Local training: the steps a client takes with its data and a model.

How many steps is decided in `strategies/budgets`.
"""
