"""Clients as the server sees them: profiles, availability, speed, and the roster of up to millions.
Fleets to choose from are in `clients/fleet`."""
