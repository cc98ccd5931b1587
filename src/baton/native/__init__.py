"""The CPU's fast path: a stock model's step is recorded once and then runs as one native call.

May never be imported by the model, and its kernels may never know torch; without a compiler it says so.
"""
