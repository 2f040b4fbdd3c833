"""The client side: local training, models, data, fleets and attacks, final classes only.

What the server decides is in `strategies`; the round loop is in `fedhet/engine`.
"""
