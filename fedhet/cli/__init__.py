"""The commands: what is typed, shown and refused, and nothing that computes. What a command does lies in the rooms
below, so that Python code reaches it without a terminal."""
