"""From a hub id or a folder to a model that runs: what it is, and the fastest exact way to run it.

May never serve what differs from the model alone; it refuses by name instead.
"""
