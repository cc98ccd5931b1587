"""Queries' life cycle, the iteration, the loop thread and the client that talks to it.

May never import a body of a port (batch, prefiller, policy) or torch; what it runs is handed in by `compose.py`.
"""
