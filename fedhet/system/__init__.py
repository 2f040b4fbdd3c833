"""What the operating system is asked for: files that are whole or not there, locks, threads, living processes.
Nothing here knows of federated learning."""
