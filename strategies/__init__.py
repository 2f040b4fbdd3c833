"""Methods, as the server runs them: one folder per axis, one file per published method, final classes only.

What runs on a client is in `clients`; base classes and the engine are in `fedhet`.
"""
