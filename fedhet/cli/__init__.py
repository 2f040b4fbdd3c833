"""The commands: options, output and error messages; nothing here computes. What a command does lies in the rooms
below, so that Python code reaches it without a terminal."""
