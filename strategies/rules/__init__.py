"""Aggregation rules: n updates in, one out, linear or robust.

Weights by age are in `staleness`; what an update covers is in `spaces`.
"""
