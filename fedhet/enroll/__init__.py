"""Enrolment: how a real device becomes a client, and stops being one.

files, canonical      atomic files of mode 0600; bytes that are signed and hashed
errors                every refusal: stable code, cause, remedy, exit number
identity, sign        keys born on the device; what it signs
tokens, ca, registry  what the operator holds: invitations, certificates, the list of clients
audit                 what was done, hash-chained
members               what a running ServerApp sees of it
service, proxy, serve the federation's public door and what stands behind it
join, agent, doctor   the device's half
"""
