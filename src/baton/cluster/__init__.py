"""Engines that are elsewhere, and the front's way to them: the engine's loop by another body of its port.

May never import a model, a batch or the server, nor know how messages travel.
"""
