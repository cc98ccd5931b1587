"""Figures of several engines: a front, and engines elsewhere."""
