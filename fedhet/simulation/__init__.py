"""Simulated clients in virtual time: the virtual grid, its worker processes, and unchanged Flower apps on it.
Real time and Flower's own processes are in `deployment`."""
