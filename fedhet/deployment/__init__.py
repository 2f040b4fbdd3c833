"""Runs in real time on Flower's own processes: ServerApp, ClientApp, Ray simulation, local SuperLink, a device's node.
Enrolment and keys are in `federation`; simulated time is in `simulation`."""
