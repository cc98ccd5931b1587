"""What a model says, as a client is told it: text, reasoning and tool calls, found while it is said.

May never import torch, a tokenizer or a web framework; imports the ground floor and nothing else.
"""
