"""Arithmetic on named tensors and their bytes: trees, wire format, random streams, shared memory.
Nothing here knows of clients or rounds."""
