"""Fold batch normalisation into the convolution or matrix product next to it.

Batch normalisation in evaluation mode is one multiplication and one addition a channel, with
s = weight / √(running_var + eps) and t = bias - running_mean·s::

    batch_norm(conv(x, W, b))  →  conv(x, s·W, s·b + t)          s over the output channels
    conv(batch_norm(x), W, b)  →  conv(x, W·s, b + Σ W·t)        s over the input channels

The second form holds only if the convolution pads with nothing, or t is 0: what it pads with is not normalised. Layers that take
part: convolutions and transposed convolutions of 1 to 3 dimensions with any number of groups, ``linear``, ``addmm``, and ``mm`` and
``matmul`` of a matrix by a constant (which become ``addmm``). The layer must be read by the normalisation alone, or the other way
round. New weights are computed in float64 and rounded once to the type of the old.

Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, §3.2.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tiacc.graph import arguments, specs
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

NORMS = (
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
)
"""The normalisations. All but the first return more than their result, which is then their first item."""

CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv1d.padding,
        aten.conv2d.padding,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
        aten.convolution.default,
        aten._convolution.default,
        aten._convolution.deprecated,
    }
)
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
PRODUCTS = {
    aten.linear.default: ("input", "weight", "bias"),
    aten.addmm.default: ("mat1", "mat2", "self"),
    aten.mm.default: ("self", "mat2", None),
    aten.matmul.default: ("self", "other", None),
}
"""The matrix products, with the names of their input, weight and bias."""


@register
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds batch normalisation into the layer before it, else into the layer after it.

    Leaves ``ctx.data["fold-batch-norm"]``: the reason for each normalisation that stays, by the name of its node.
    """

    name: ClassVar[str] = "fold-batch-norm"
    after: ClassVar[tuple[str, ...]] = ("remove-dropout",)

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Fold; each normalisation that goes counts as one change."""
        return PassResult(gm, fold_batch_norm(gm, ctx))


@dataclass(frozen=True)
class Norm:
    """A batch normalisation in evaluation mode.

    Attributes:
        node: The call.
        result: The node that holds the normalised tensor.
        input: What is normalised, ``(N, C, ...)``.
        scale: What each channel is multiplied by, ``(C,)``, float64.
        shift: What is then added, ``(C,)``, float64.
    """

    node: fx.Node
    result: fx.Node
    input: fx.Node
    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product by a constant.

    Attributes:
        node: The call.
        input: What it is applied to.
        weight: The node of its weight, a constant.
        bias: What it adds to each output channel, ``(O,)``, float64; None for nothing.
        gain: What the product is multiplied by before the bias is added.
        groups: The number of groups.
        is_input_first: Whether the first dimension of the weight is that of the input channels.
        is_uniform: Whether each element of the result sums over the whole weight, so that a constant input gives a constant.
    """

    node: fx.Node
    input: fx.Node
    weight: fx.Node
    bias: torch.Tensor | None
    gain: float
    groups: int
    is_input_first: bool
    is_uniform: bool

    @property
    def tensor(self) -> torch.Tensor:
        """The weight."""
        tensor = rewrite.constant_of(self.weight)
        assert tensor is not None
        return tensor


class _Refusal(Exception):  # noqa: N818 - an answer, not an error
    """A normalisation cannot be folded; the message is the reason."""


def fold_batch_norm(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Fold the batch normalisations of `gm` that can be; return how many."""
    reasons: dict[str, str] = {}
    changes = 0
    norms = [node for node in gm.graph.nodes if node.target in NORMS]
    # Backwards again for those that stayed: one before another can go into the layer after both once the other has.
    for backwards in (False, True):
        stayed: list[fx.Node] = []
        for node in reversed(norms) if backwards else norms:
            try:
                norm = match_norm(node)
                layer, weight, bias = _choose(norm)
            except _Refusal as refusal:
                reasons[node.name] = str(refusal)
                stayed.append(node)
                continue
            if ctx.spend():
                reasons.pop(node.name, None)
                _rewrite(norm, layer, weight, bias)
                changes += 1
        norms = stayed
    ctx.data[FoldBatchNorm.name] = reasons
    return changes


def match_norm(node: fx.Node) -> Norm:
    """Return the normalisation that `node` computes.

    Raises:
        _Refusal: It uses the statistics of the batch, has parameters that vary, or its statistics are read.
    """
    bound = arguments.bound(node)
    if bound.get("training"):
        raise _Refusal("it is in training mode")
    result = node
    if isinstance(node.meta.get("val"), (list, tuple)):
        read = [pick for pick in node.users if pick.users]
        if len(read) != 1 or read[0].target is not operator.getitem or read[0].args[1] != 0:
            raise _Refusal("its statistics are read, or nothing of it")
        result = read[0]
    mean, variance = (_number_for_each_channel(bound[name], name) for name in ("running_mean", "running_var"))
    eps = bound["epsilon"] if "epsilon" in bound else bound["eps"]
    scale = (variance + eps).rsqrt()
    if bound["weight"] is not None:
        scale = scale * _number_for_each_channel(bound["weight"], "weight")
    shift = -mean * scale
    if bound["bias"] is not None:
        shift = shift + _number_for_each_channel(bound["bias"], "bias")
    if not (rewrite.is_finite(scale) and rewrite.is_finite(shift)):
        raise _Refusal("its scale or shift is not finite")
    return Norm(node, result, bound["input"], scale, shift)


def match_layer(node: fx.Node) -> Layer:
    """Return the layer that `node` computes.

    Raises:
        _Refusal: It is none, or not in the form needed.
    """
    if node.target in CONVOLUTIONS:
        return _match_convolution(node)
    if node.target in PRODUCTS:
        return _match_product(node)
    raise _Refusal(f"{node.name} is no convolution or matrix product")


def _match_convolution(node: fx.Node) -> Layer:
    bound = arguments.bound(node)
    weight = rewrite.constant_of(bound["weight"])
    if weight is None:
        raise _Refusal(f"the weight of {node.name} is not a constant")
    if specs.tensor_of(node).ndim != weight.ndim:
        raise _Refusal(f"{node.name} has no batch dimension")
    is_transposed = node.target in TRANSPOSED or bool(bound.get("transposed"))
    padding = bound["padding"]
    if isinstance(padding, str):
        pads = padding != "valid" and any(size > 1 for size in weight.shape[2:])
    else:
        pads = any(size != 0 for size in padding)
    bias = None if bound["bias"] is None else _number_for_each_channel(bound["bias"], f"the bias of {node.name}")
    return Layer(node, bound["input"], bound["weight"], bias, 1.0, bound["groups"], is_transposed, not (pads or is_transposed))


def _match_product(node: fx.Node) -> Layer:
    bound = arguments.bound(node)
    input_name, weight_name, bias_name = PRODUCTS[node.target]  # type: ignore[index]
    weight = rewrite.constant_of(bound[weight_name])
    if weight is None:
        raise _Refusal(f"the weight of {node.name} is not a constant")
    source = bound[input_name]
    if weight.ndim != 2 or specs.tensor_of(source).ndim != 2:
        raise _Refusal(f"{node.name} is not the product of two matrices")
    is_input_first = node.target is not aten.linear.default
    gain, beta = bound.get("alpha", 1), bound.get("beta", 1)
    bias = None
    if bias_name and bound[bias_name] is not None and beta != 0:
        size = weight.shape[1 if is_input_first else 0]
        bias = _number_for_each_channel(bound[bias_name], f"the bias of {node.name}") * beta
        if bias.numel() != 1 and (bias.numel() != size or bias.shape[-1] != size):
            raise _Refusal(f"the bias of {node.name} is not one number a channel")
        bias = bias.reshape(-1).expand(size)
    return Layer(node, source, bound[weight_name], bias, gain, 1, is_input_first, True)


def _number_for_each_channel(node: object, what: str) -> torch.Tensor:
    tensor = rewrite.constant_of(node)
    if tensor is None:
        raise _Refusal(f"its {what} is not a constant" if " " not in what else f"{what} is not a constant")
    return tensor.to(torch.float64)


def _choose(norm: Norm) -> tuple[Layer, torch.Tensor, torch.Tensor]:
    """Return the layer to fold a normalisation into, with its new weight and bias; that before it first.

    Raises:
        _Refusal: There is none; both reasons.
    """
    try:
        return _fold_into_previous(norm)
    except _Refusal as previous:
        try:
            return _fold_into_next(norm)
        except _Refusal as following:
            raise _Refusal(f"not into the layer before: {previous}; nor into the one after: {following}") from None


def _fold_into_previous(norm: Norm) -> tuple[Layer, torch.Tensor, torch.Tensor]:
    layer = match_layer(norm.input)
    if rewrite.single_user(layer.node) is not norm.node:
        raise _Refusal(f"{layer.node.name} is read by others too")
    _check_types(layer.node, norm.result)
    weight = layer.tensor * _factor(layer, norm.scale, is_output=True)  # float64, as the factor is
    bias = norm.shift if layer.bias is None else norm.scale * layer.bias + norm.shift
    return layer, _rounded(weight, layer), _rounded(bias, layer)


def _fold_into_next(norm: Norm) -> tuple[Layer, torch.Tensor, torch.Tensor]:
    user = rewrite.single_user(norm.result)
    if user is None:
        raise _Refusal("it is read by several, or returned")
    layer = match_layer(user)
    if layer.input is not norm.result:
        raise _Refusal(f"it is not the input of {user.name}")
    if not layer.is_uniform and norm.shift.any():
        raise _Refusal(f"{user.name} pads its input with what is not normalised")
    _check_types(norm.input, norm.result)
    tensor = layer.tensor
    bias = _sum_of_inputs(layer, tensor * _factor(layer, norm.shift, is_output=False)) * layer.gain
    if layer.bias is not None:
        bias = bias + layer.bias
    return layer, _rounded(tensor * _factor(layer, norm.scale, is_output=False), layer), _rounded(bias, layer)


def _check_types(first: fx.Node, second: fx.Node) -> None:
    if not rewrite.same_type(first.meta.get("val"), second.meta.get("val")):
        raise _Refusal("it changes the type of its input")


def _factor(layer: Layer, channels: torch.Tensor, *, is_output: bool) -> torch.Tensor:
    """Return numbers for the output or input channels of a layer in the shape that its weight can be multiplied by."""
    first, second, *kernel = layer.tensor.shape
    groups = layer.groups
    outputs, inputs = (second, first // groups) if layer.is_input_first else (first // groups, second)  # in a group
    if channels.numel() != groups * (outputs if is_output else inputs):
        raise _Refusal(f"{layer.node.name} has another number of channels")
    table = channels.view((groups, outputs, 1) if is_output else (groups, 1, inputs)).expand(groups, outputs, inputs)
    if layer.is_input_first:
        table = table.transpose(1, 2)
    return table.reshape(first, second, *(1 for _ in kernel))


def _sum_of_inputs(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Return, for each output channel, the sum of a weight over the input channels and the kernel."""
    if not layer.is_input_first:
        return weight.flatten(1).sum(1)
    first, second = weight.shape[:2]
    return weight.reshape(layer.groups, first // layer.groups, second, -1).sum((1, 3)).reshape(-1)


def _rounded(tensor: torch.Tensor, layer: Layer) -> torch.Tensor:
    rounded = tensor.to(layer.tensor.dtype)
    if not rewrite.is_finite(rounded):
        raise _Refusal(f"the weight of {layer.node.name} would overflow {rounded.dtype}")
    return rounded


def _rewrite(norm: Norm, layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give `layer` its new weight and bias, and take the normalisation out."""
    node = layer.node
    fake = layer.weight.meta.get("val")
    name = re.sub(r"_folded(_\d+)?$", "", str(layer.weight.target))
    weight_node = rewrite.add_constant(
        node,
        f"{name}_folded",
        weight,
        val=fake if isinstance(fake, torch.Tensor) and rewrite.same_layout(fake, weight) else None,
    )
    bias_node = rewrite.add_constant(node, f"{name}_bias_folded", bias)
    is_previous = norm.input is node
    norm.result.replace_all_uses_with(node if is_previous else norm.input)
    if node.target in CONVOLUTIONS or node.target is aten.linear.default:
        arguments.rebind(node, weight=weight_node, bias=bias_node)
    elif node.target is aten.addmm.default:
        arguments.rebind(node, mat2=weight_node, beta=1, **{"self": bias_node})
    else:
        source = layer.input if is_previous else norm.input
        node.target, node.args, node.kwargs = aten.addmm.default, (bias_node, source, weight_node), {}
    for pick in list(norm.node.users):
        node.graph.erase_node(pick)
    node.graph.erase_node(norm.node)
