"""How much work one job asks of one client."""
