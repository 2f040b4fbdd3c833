"""Combining updates in several processes: a tree of sums as updates arrive, or columns of all updates each."""
