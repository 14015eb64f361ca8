"""Operators that torch does not have, made with ``torch.library``: all that tiacc has to know of one is said in one place.

::

    tiacc.operators.teach(
        torch.ops.acme.soft_clip.default,
        fake=lambda x, limit: torch.empty_like(x),
        precision="follow",
        expand=lambda x, limit: aten.mul(aten.tanh(aten.div(x, limit)), limit),
    )

Who is not taught keeps working: such an operator stays in Torch, in float32, and the report says so.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from tiacc.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tiacc.passes.patterns import Match
    from tiacc.passes.rules import RewriteRule

PRECISIONS = ("compute", "follow", "move", "keep")
"""What an operator may be in half precision; see `tiacc.passes.precision_policy`."""


@dataclass(frozen=True)
class Taught:
    """What is known of an operator.

    Attributes:
        precision: One of `PRECISIONS`.
        rule: What puts aten operators in its place where no backend has a converter; None if it was not said how.
    """

    precision: str
    rule: RewriteRule | None


_taught: dict[torch._ops.OpOverload, Taught] = {}


def teach(
    operator: torch._ops.OpOverload,
    *,
    fake: Callable[..., Any] | None = None,
    precision: str = "keep",
    expand: Callable[..., Any] | None = None,
    tensorrt: Callable[..., Any] | None = None,
    tensorrt_options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Tell every stage what an operator is. What is told again replaces what was told before.

    Args:
        operator: The overload, ``torch.ops.acme.soft_clip.default``, of a namespace that is not torch's.
        fake: Returns results of the right shape and element type without data, for the inference of shapes; it is given to
            ``torch.library.register_fake``. None where the operator has such a function already.
        precision: What it does at level 1: ``"compute"`` runs in half precision, whatever comes in; ``"follow"`` in the widest type that
            comes in; ``"move"`` too, and rounding before it is the same as rounding after it; ``"keep"`` in float32.
        expand: Computes the same with aten operators. Its parameters have the names of the operator's schema; it may leave out those that
            it does not need. It is used where no backend that was asked for has a converter of its own: so OpenVINO, cuDNN and all others
            run the operator.
        tensorrt: Converts it for TensorRT: see `tiacc.backends.tensorrt.converters.converts`.
        tensorrt_options: The other arguments of that decorator, ``{"check": …, "dtypes": …}``.

    Raises:
        InvalidArgumentError: It is no overload, or one of torch's; there is no such precision; or ``expand`` does not fit the schema.
    """
    _check(operator, precision)
    rule = None if expand is None else _rule_of(operator, expand)
    if fake is not None:
        torch.library.register_fake(operator._schema.name, fake)
    if tensorrt is not None:
        from tiacc.backends.tensorrt.converters import converts

        converts(operator, **tensorrt_options)(tensorrt)
    _taught[operator] = Taught(precision, rule)


def taught(operator: Any) -> Taught | None:
    """Return what is known of an operator that is not torch's; None if nothing is."""
    return _taught.get(operator)


def rules(backends: Sequence[Any]) -> list[RewriteRule]:
    """Return the rules that expand the operators which none of these backends converts."""
    from tiacc.backends.base import asked
    def is_left(match: Match) -> bool | str:
        owner = next((backend.name for backend in backends if asked(backend, "supports", match.node)), None)
        return owner is None or f"{owner} converts it"

    return [dataclasses.replace(item.rule, check=is_left) for item in _taught.values() if item.rule is not None]


def _check(operator: Any, precision: str) -> None:
    if not isinstance(operator, torch._ops.OpOverload):
        raise InvalidArgumentError(f"teach({operator!r}): it is no overload of an operator; write torch.ops.<namespace>.<name>.default")
    if operator.namespace in ("aten", "prim", "prims"):
        raise InvalidArgumentError(f"teach({operator}): tiacc knows torch's own operators; write a rule for what is to become of them")
    if precision not in PRECISIONS:
        raise InvalidArgumentError(f"teach({operator}): the precision is {precision!r}; there are {', '.join(PRECISIONS)}")


def _rule_of(operator: torch._ops.OpOverload, expand: Callable[..., Any]) -> RewriteRule:
    from tiacc.passes.rules import RewriteRule

    if len(operator._schema.returns) != 1:
        raise InvalidArgumentError(f"teach({operator}): it has {len(operator._schema.returns)} results, and expand gives one")

    def pattern(**parts: Any) -> Any:
        given = operator._schema.arguments
        positional = [parts[item.name] for item in given if not item.kwarg_only]
        return operator(*positional, **{item.name: parts[item.name] for item in given if item.kwarg_only})

    kind = inspect.Parameter.KEYWORD_ONLY
    names = [item.name for item in operator._schema.arguments]
    pattern.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return RewriteRule(f"expand {operator}", pattern, expand)
