"""Figures of the engine, its server and its kernels on the CPU."""
