"""What is done so that less can be read from a client's update."""
