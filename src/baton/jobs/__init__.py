"""Batches that outlive the process: files of requests, what became of each line, and who asks them one after another.

May never import the engine, the server or torch: whoever answers a line is handed in.
"""
