"""The operator's side: registry, admission, public TLS proxy, audit log, `fedhet serve` and submitted runs.
The certificate authority's keys are in `federation/pki`."""
