"""Queries' life cycle, the iteration, the loop thread and the client that talks to it.

May never import a body of a port (batch, prefiller, policy) or torch; `compose.py` hands in what it runs.
"""
