"""A conversation in a terminal, with an engine in this process or with a server.

May never import torch, nor write to the terminal what a model said as it came: `clean` stands before it.
"""
