"""What a model says, as a client gets it: text, reasoning and tool calls, told apart while it comes.

May never import torch, a tokenizer or a web framework; imports the ground floor and nothing else.
"""
