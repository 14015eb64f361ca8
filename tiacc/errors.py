"""The exceptions that tiacc raises: one tree, so that ``except TiaccError`` catches them all.

Each message says what went wrong, where (the argument, or the node and its TorchScript source line) and what to do about it.
"""

from __future__ import annotations


class TiaccError(Exception):
    """The root of every exception that tiacc raises on purpose."""


class InvalidArgumentError(TiaccError, ValueError):
    """An argument of a public function has a wrong type or value."""


class ImportGraphError(TiaccError):
    """A TorchScript file or graph cannot be read."""


class PassError(TiaccError):
    """A pass failed."""


class PreconditionError(PassError):
    """A graph given to a pass is not in the form that the pass requires."""


class PostconditionError(PassError):
    """A graph made by a pass is not in the form that the pass ensures."""


class PassOrderError(TiaccError):
    """A pipeline contradicts the order that its passes declare."""


class RegistryError(TiaccError, LookupError):
    """A name is not registered, or is registered twice."""


class BackendUnavailableError(TiaccError):
    """A backend cannot be used on this machine: its library, driver or device is missing."""


class BuildError(TiaccError):
    """A backend accepted a subgraph and then could not build an engine from it."""


class EngineFormatError(TiaccError):
    """The bytes of an engine are not ones that this version of tiacc can read."""


class ShapeOutOfRangeError(TiaccError, ValueError):
    """An input of an engine has a shape or dtype that the engine was not built for."""


class AccuracyError(TiaccError):
    """The outputs of the optimized model differ from the input model's by more than the tolerance."""


class SpeedupError(TiaccError):
    """The optimized model is not as much faster as ``require_speedup`` asks for."""


class ExportError(TiaccError):
    """An optimized graph could not be written back to TorchScript."""
