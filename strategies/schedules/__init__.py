"""Who trains when, and when updates are combined: plain data and logic, without tensors, clocks and threads.

How much a client does is in `budgets`; see README.md here for the life of a schedule.
"""
