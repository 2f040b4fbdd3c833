"""A run and its folder: experiment, session, evaluation, event log, checkpoints, result.
How its messages travel is in `simulation` and `deployment`."""
