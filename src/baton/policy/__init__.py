"""Policies: a pure function from a frozen view of the engine to a frozen plan of its next iteration.

May never touch a batch, a query's state, torch or the clock; imports the ground floor and nothing else.
"""
