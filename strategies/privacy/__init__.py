"""What is done on a client so that less can be read from its update.

Keys and signatures are in `fedhet/federation/pki`.
"""
