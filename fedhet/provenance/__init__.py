"""Which code made a result: where the packages lie, and hashes that server and devices compare.
What a run recorded is in `runs`."""
