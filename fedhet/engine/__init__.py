"""The round loop without I/O: server state machine, update validation, and the client's half of a job.
Methods are in `strategies`; messages are in `flower`; nothing here knows how a run is carried."""
