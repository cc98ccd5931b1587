"""Keys and values in memory: the rectangle of the running batch, and segments lifted out of it.

May never import transformers, the model or anything above; knows tokens and tensors, not queries' lives.
"""
