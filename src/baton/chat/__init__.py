"""A conversation in a terminal, with an engine in this process or with a server.

May never import torch, nor write a model's words to the terminal before `clean` has made them safe.
"""
