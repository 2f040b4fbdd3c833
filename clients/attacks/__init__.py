"""Byzantine clients for simulations: what they send instead of what they learned.

Rules that withstand them are in `strategies/rules`.
"""
