"""Forms that answers must have, compiled by llguidance into constraints on tokens; and which schemas can be honoured.

May never import torch, transformers or anything above the ground; knows token ids and bytes, not rows or logits.
"""
