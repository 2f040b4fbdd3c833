"""Fleets: who the simulated clients are. Each builds a roster from a seed."""
