"""The round loop without I/O: server state machine, update validation, and the client's half of a job.
Methods are in `strategies`, messages in `flower`; nothing here depends on how a run's messages travel."""
