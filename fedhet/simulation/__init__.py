"""Simulated clients in virtual time: the virtual grid, its worker processes, and Flower apps of others on it.
Real time and real processes of Flower's are in `deployment`."""
