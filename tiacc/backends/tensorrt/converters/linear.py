"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.convolution import has_empty
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


def _check(view: NodeView) -> Support:
    fakes: list[torch.Tensor] = []
    for name in view.args:
        value = view.value(name)
        fakes += [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, torch.Tensor)]
    return Support(False, "a matrix product of empty tensors") if has_empty(*fakes) else SUPPORTED


# -- products ---------------------------------------------------------------------------------------------------------------------


def multiply(net: Conversion, first: Value, second: Value) -> Tensor:
    """Multiply as `torch.matmul` does: vectors are rows on the left and columns on the right, the rest broadcasts."""
    is_row, is_column = net.rank(first) == 1, net.rank(second) == 1
    if is_row:
        first = net.unsqueeze(first, (0,))
    if is_column:
        second = net.unsqueeze(second, (1,))
    result = net.matmul(first, second)
    rank = net.rank(result)
    return net.squeeze(result, [rank - 2] * is_row + [rank - 1] * is_column)


@converts(
    aten.matmul.default,
    aten.linalg_matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.dot.default,
    aten.vdot.default,
    dtypes=FLOATS,
    check=_check,
)
def matmul(call: Call) -> Value:
    """A product of matrices, batches of them, or vectors."""
    first, second = (call.operand(name) for name in list(call.args)[:2])
    return multiply(call.net, first, second)


@converts(aten.linear.default, dtypes=FLOATS, check=_check)
def linear(call: Call) -> Value:
    """Input · weightᵀ + bias."""
    net, value, weight, bias = call.net, call.tensor("input"), call.operand("weight"), call.operand("bias")
    if net.rank(weight) == 1:
        result = multiply(net, value, weight)
    else:
        row = net.unsqueeze(value, (0,)) if net.rank(value) == 1 else value
        result = net.matmul(row, weight, transpose_second=True)
        result = net.squeeze(result, (0,)) if row is not value else result
    return result if bias is None else net.binary("SUM", result, bias)


@converts(aten.outer.default, aten.ger.default, dtypes=FLOATS, check=_check)
def outer(call: Call) -> Value:
    """Each element of one vector times each of the other."""
    return _outer(call.net, call.operand("self"), call.operand("vec2"))


def _outer(net: Conversion, first: Value, second: Value) -> Tensor:
    return net.binary("PROD", net.unsqueeze(first, (1,)), net.unsqueeze(second, (0,)))


@converts(aten.inner.default, dtypes=FLOATS, check=_check)
def inner(call: Call) -> Value:
    """Sums of products along the last dimension of both, for all pairs of the others."""
    net, first, second = call.net, call.operand("self"), call.operand("other")
    if net.rank(first) == 0 or net.rank(second) == 0:
        return net.binary("PROD", first, second)
    rows, columns = net.shape(first)[:-1], net.shape(second)[:-1]
    a = net.reshape(first, (-1, net.shape(first)[-1]))
    b = net.reshape(second, (-1, net.shape(second)[-1]))
    return net.reshape(net.matmul(a, b, transpose_second=True), (*rows, *columns))


@converts(aten.linalg_multi_dot.default, aten.chain_matmul.default, dtypes=FLOATS, check=_check)
def multi_dot(call: Call) -> Value:
    """A product of several matrices, from the left to the right."""
    first, *rest = call.operands(next(iter(call.args)))
    for item in rest:
        first = multiply(call.net, first, item)
    return call.net.tensor(first)


@converts(aten.kron.default, dtypes=FLOATS, check=_check)
def kron(call: Call) -> Value:
    """The Kronecker product."""
    net = call.net
    rank = max(call.fake("self").dim(), call.fake("other").dim())
    first, second = net.align(call.operand("self"), call.operand("other"))
    product = net.binary(
        "PROD", net.unsqueeze(first, range(1, 2 * rank, 2)), net.unsqueeze(second, range(0, 2 * rank, 2)), call.dtype
    )
    return net.reshape(product, [a * b for a, b in zip(net.shape(first), net.shape(second))])


# -- products and sums --------------------------------------------------------------------------------------------------------------


def _weighted_sum(call: Call, name: str, product: Tensor) -> Tensor:
    """Return beta · argument + alpha · product; with beta 0 the argument is not looked at."""
    net, dtype = call.net, call.dtype
    alpha, beta = call.number("alpha"), call.number("beta")
    if alpha != 1:
        product = net.binary("PROD", product, alpha, dtype)
    addend: Any = call.operand(name)
    if beta == 0:
        return net.expand(product, net.shape(product)) if alpha == 1 else product
    return net.binary("SUM", product, addend if beta == 1 else net.binary("PROD", addend, beta, dtype), dtype)


@converts(aten.addmm.default, dtypes=FLOATS, check=_check)
def addmm(call: Call) -> Value:
    """Beta · self + alpha · mat1 · mat2."""
    return _weighted_sum(call, "self", call.net.matmul(call.operand("mat1"), call.operand("mat2")))


@converts(aten.baddbmm.default, dtypes=FLOATS, check=_check)
def baddbmm(call: Call) -> Value:
    """Beta · self + alpha · batch1 · batch2."""
    return _weighted_sum(call, "self", call.net.matmul(call.operand("batch1"), call.operand("batch2")))


@converts(aten.addbmm.default, dtypes=FLOATS, check=_check)
def addbmm(call: Call) -> Value:
    """Beta · self + alpha · the sum over the batch of batch1 · batch2."""
    product = call.net.matmul(call.operand("batch1"), call.operand("batch2"))
    return _weighted_sum(call, "self", call.net.reduce("SUM", product, (0,)))


@converts(aten.addmv.default, dtypes=FLOATS, check=_check)
def addmv(call: Call) -> Value:
    """Beta · self + alpha · mat · vec."""
    return _weighted_sum(call, "self", multiply(call.net, call.operand("mat"), call.operand("vec")))


@converts(aten.addr.default, dtypes=FLOATS, check=_check)
def addr(call: Call) -> Value:
    """Beta · self + alpha · vec1 · vec2ᵀ."""
    return _weighted_sum(call, "self", _outer(call.net, call.operand("vec1"), call.operand("vec2")))


# -- einsum ---------------------------------------------------------------------------------------------------------------------------


def explicit_equation(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return the indices of each operand and of the result of an einsum, an ellipsis spelled out in letters of its own.

    Args:
        equation: As `torch.einsum` takes it: ``"b...ij, b...jk"``, upper and lower case differ.
        ranks: The number of dimensions of each operand.

    Raises:
        ValueError: It names an operand that is not there, or has more than 26 indices.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"{equation!r} has {len(terms)} operands, {len(ranks)} are given")
    widths = [rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks)]
    width = max(widths)
    letters = sorted({letter for term in terms for letter in term if letter.isalpha()})
    if len(letters) + width > 26:
        raise ValueError(f"{equation!r} has more than 26 indices")
    names = {letter: chr(ord("a") + width + place) for place, letter in enumerate(letters)}
    dots = "".join(chr(ord("a") + place) for place in range(width))
    if not arrow:
        once = [letter for letter in letters if left.count(letter) == 1]
        right = ("..." if width else "") + "".join(once)

    def spell(term: str, own: str) -> str:
        return "".join(own if part == "." else names[part] for part in term.replace("...", "."))

    return [spell(term, dots[width - own :]) for term, own in zip(terms, widths)], spell(right, dots)


def _einsum_check(view: NodeView) -> Support:
    fakes = view.value("tensors")
    try:
        terms, result = explicit_equation(view.value("equation"), [fake.dim() for fake in fakes])
    except ValueError as error:
        return Support(False, str(error))
    if any(len(set(term)) != len(term) for term in (*terms, result)):
        return Support(False, "einsum of a diagonal: an index occurs twice in one operand")
    sizes: dict[str, set[Any]] = {}
    for term, fake in zip(terms, fakes):
        for letter, size in zip(term, fake.shape):
            sizes.setdefault(letter, set()).add(str(size))
    if any(len(found) > 1 for found in sizes.values()):
        return Support(False, "einsum that broadcasts a dimension of size 1")
    return _check(view)


@converts(aten.einsum.default, dtypes=FLOATS, check=_einsum_check)
def einsum(call: Call) -> Value:
    """Sums of products by index, two operands at a time."""
    net, operands = call.net, call.operands("tensors")
    terms, result = explicit_equation(call.number("equation"), [net.rank(item) for item in operands])
    value, term = operands[0], terms[0]
    if len(operands) == 1:
        return net.add("einsum", [net.tensor(value)], f"{term}->{result}")
    for place in range(1, len(operands)):
        other = terms[place]
        needed = set(result).union(*terms[place + 1 :])
        merged = result if place == len(operands) - 1 else "".join(letter for letter in dict.fromkeys(term + other) if letter in needed)
        value = net.add("einsum", [net.tensor(value), net.tensor(operands[place])], f"{term},{other}->{merged}")
        term = merged
    return value
