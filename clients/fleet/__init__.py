"""Fleets of simulated clients: each builds a roster of profiles from a seed.

Profiles and availability themselves are in `fedhet/population`.
"""
