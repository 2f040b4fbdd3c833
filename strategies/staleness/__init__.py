"""What an update that started from an older version is worth, or what it is turned into.

When late updates are waited for is decided in `schedules`.
"""
