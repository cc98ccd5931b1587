"""The ground: queries, events, settings, limits, errors, clocks and footprints, which every room uses.

May never import torch, a third party's package or another room.
"""
