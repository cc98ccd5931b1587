"""What the engine's events add up to: Prometheus metrics, from sinks that only listen.

May never be imported by another room, change anything in the engine, or hold up the engine's thread.
"""
