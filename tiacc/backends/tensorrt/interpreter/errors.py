"""What the interpreter raises."""

from __future__ import annotations

from tiacc.errors import TiaccError


class InterpretationError(TiaccError):
    """A network cannot be evaluated: it is malformed, or a value contradicts what the network itself declares.

    The message names the layer, its type, and the shapes or dtypes that disagree.
    """


class UnsupportedLayerError(InterpretationError):
    """A layer or one of its settings is of a kind that is not evaluated; the message names the layer and says why."""
