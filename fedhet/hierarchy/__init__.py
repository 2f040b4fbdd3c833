"""Combining updates in several processes: leaves that sum as updates arrive, one middle per host, one top."""
