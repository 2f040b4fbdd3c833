"""What is sent, how it is installed, and how it combines."""
