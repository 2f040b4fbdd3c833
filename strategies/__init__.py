"""Final classes of what the server decides and what the wire does: one folder an axis, one file a paper."""
