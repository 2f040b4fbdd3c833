"""Compiled loops, which exist for speed alone: sums, concatenation, steps of small perceptrons, memory that stays.
Without a compiler every one of them is done by torch or numpy; no method may depend on this folder."""
