"""Clients that mean harm, in simulation: what they send instead of what they learned."""
