"""Workloads, their runs and the runs' results: one workload through any settings, compared fairly.

May never reach into the engine: it asks as clients do and listens as sinks do.
"""
