"""How much work one job asks of one client: steps, rank, width.

When a job is sent is decided in `schedules`.
"""
