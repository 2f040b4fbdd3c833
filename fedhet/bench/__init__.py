"""What things cost on this machine: the measurements behind `fedhet bench` and the scripts under experiments/."""
