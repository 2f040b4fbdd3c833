"""What is sent, how it is installed on a client, and how updates combine: full models, parts, adapters.

Arithmetic on named tensors is in `fedhet/numerics`.
"""
