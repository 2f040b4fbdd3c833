"""Final classes of what happens on a device: work, fleets, data, models, attacks."""
