"""Combining updates in several processes: a tree of sums as updates arrive, or columns of all updates each.

Rules themselves are in `strategies/rules`; the flat sum with the server is in `engine/aggregator.py`.
"""
