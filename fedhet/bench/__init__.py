"""Benchmarks behind `fedhet bench` and the scripts under experiments/: simulation, aggregation, rules.

Scientific comparisons of methods are in experiments/.
"""
