"""Stand-ins for tests: a batch without a model, a clock moved by hand, a CPU in place of a GPU, faults on purpose.

May never decide anything outside of tests.
"""
