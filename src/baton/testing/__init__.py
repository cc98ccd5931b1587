"""Stand-ins for tests: a batch without a model, a clock that is moved, a CPU in place of a GPU, faults on purpose.

May never decide anything where nobody tests.
"""
