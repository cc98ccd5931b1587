"""The command line: one file per verb, and the flags that they share.

May never import torch before a verb has what it was asked for checked.
"""

from baton.core.late_compiler import load_compiler_late

load_compiler_late()
