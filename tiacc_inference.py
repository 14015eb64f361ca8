"""The name under which code written for the original accelerator imports `tiacc.optimize`; such code runs unchanged."""

from tiacc import optimize

__all__ = ["optimize"]
