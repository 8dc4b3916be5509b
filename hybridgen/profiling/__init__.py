"""Token by token what happened while a text was written: to read, to plot, and to set a threshold.

`ProfileResult` holds one `TokenProfile` for each new token. Nothing here imports torch.
"""

from hybridgen.profiling.profile import ProfileResult, TokenProfile

__all__ = ["ProfileResult", "TokenProfile"]
