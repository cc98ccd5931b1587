"""Native CPU kernels behind ctypes: compiled when baton is installed where a compiler is, else absent and said so.

May never import torch or anything above the ground; knows addresses, shapes and strides, not tensors or models."""
