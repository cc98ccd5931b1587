"""The GPU's fast path: graphs of decode steps, attention kernels, streams, and memory besides the rows'.

May never be needed on a CPU: outside of it, only the loader and compose may import it.
"""
