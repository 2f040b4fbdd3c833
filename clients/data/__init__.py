"""Data sets, how they are divided among clients, and what one client sees of them."""
