"""Keys, certificates, TLS and signatures: who may speak, and what they signed.
Decisions on who is admitted belong to `federation/server`."""
