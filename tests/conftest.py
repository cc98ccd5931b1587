"""One compute thread: tiny models gain nothing from more, and a busy machine makes more of them slow."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

torch.set_num_threads(1)
