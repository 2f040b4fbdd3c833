"""Data sets, partitions among clients, and the shard that one client sees.

Models that fit the data are in `clients/models`.
"""
