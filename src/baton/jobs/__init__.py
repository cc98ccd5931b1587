"""Batches of requests that outlive the process: their files, the answer of each line, and the runner that asks lines.

May never import the engine, the server or torch: its callers pass in what answers a line.
"""
