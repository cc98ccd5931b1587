"""Prometheus metrics and live figures, made from the engine's events by sinks that only listen.

May never be imported by another room, change anything in the engine, or hold up the engine's thread.
"""
