"""Engines opened to be measured: checks against the oracle, trials, calibration, tuning, simulation.

May never be imported by what serves.
"""
