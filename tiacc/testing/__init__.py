"""What every backend is held to, as a pytest class to inherit.

A plugin has its own test file::

    from tiacc.testing import BackendContract

    class TestMyBackend(BackendContract):
        backend_name = "mine"

Each test is one rule of `tiacc.backends.base`; a failure begins with the name of the rule. pytest is imported when a test skips,
not before.
"""

from tiacc.testing.checking import ContractError
from tiacc.testing.contract import BackendContract
from tiacc.testing.examples import Example, examples

__all__ = ["BackendContract", "ContractError", "Example", "examples"]
