"""From a hub id or a folder to a model that runs: what it is, and the fastest way that is exact.

May never serve what differs from the model alone; it refuses by name instead.
"""
