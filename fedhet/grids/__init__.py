"""Carriers of messages beside Flower's own: the virtual-time grid and its worker pool."""
