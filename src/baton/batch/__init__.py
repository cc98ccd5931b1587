"""The running batch: a rectangle of rows that takes segments in, feeds them, and gives segments back.

May never know policies, queries' lives or who prefilled a segment; outside, a query is known by its id, not its row.
"""
