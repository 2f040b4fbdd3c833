"""A device: joining, its state folder, its agent, and what its owner allows jobs to build.
What the operator's machine runs is in `federation/server`; the training itself is in `engine`."""
