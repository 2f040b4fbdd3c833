"""Enrolment: how a real device becomes a client, and stops being one. `pki` holds keys and TLS, `server` the operator's
side, `device` the client's, `common` what both need; how a run reaches enrolled devices is in `deployment`."""
