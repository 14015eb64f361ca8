"""Adding layers to a TensorRT network so that what goes wrong is known at once, by name.

TensorRT raises nothing: a refused layer is None, a wrong shape shows when the shape is asked for, the text goes to a logger.
`Layers.add` is the one place where layers are made; it sets their attributes, names them, and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.errors import BuildError
from tiacc.graph.specs import where

Tensor: TypeAlias = Any
"""An ``ITensor`` of the network."""

CARRIERS = {torch.uint8: torch.int32}
"""What holds the values of a type that TensorRT has for inputs and outputs of a network, and not within it."""

_CONSTANT_DTYPE = {torch.float64: torch.float32, torch.int16: torch.int32, **CARRIERS}
_SMALL = 64  # elements; equal constants up to this size share one layer


class Messages:
    """What a TensorRT logger has said, most recent last; `create` makes the logger itself."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def create(self, flavour: Flavour) -> Any:
        """Return a logger of the library that writes into this object."""
        trt, messages = flavour.module, self

        class Collector(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    messages.errors.append(message.strip())
                elif severity == trt.ILogger.WARNING:
                    messages.warnings.append(message.strip())

        return Collector()

    @property
    def last_error(self) -> str:
        """The last error that says something; a machine without a driver adds one that does not to each."""
        telling = [text for text in self.errors if "catchCudaError" not in text and "cudaError" not in text]
        return telling[-1] if telling else (self.errors[-1] if self.errors else "")


class Layers:
    """A network under construction.

    Attributes:
        flavour: The library.
        trt: Its Python module.
        network: The ``INetworkDefinition``.
        messages: What TensorRT said.
        constants: The data of each weight that TensorRT holds, by layer name (``"conv"`` for a constant, ``"conv.kernel"``,
            ``"conv.bias"``, for the weights of others); the bindings do not give all of it back.
        kinds: The kinds of layers added so far, each with the dtype of its first output.
    """

    def __init__(self, flavour: Flavour, network: Any, messages: Messages, *, has_neutral_names: bool = False) -> None:
        self.flavour = flavour
        self.trt = flavour.module
        self.network = network
        self.messages = messages
        self.constants: dict[str, torch.Tensor] = {}
        self.kinds: set[tuple[str, torch.dtype]] = set()
        self._has_neutral_names = has_neutral_names
        self._node: fx.Node | None = None
        self._count = 0
        self._last_name = ""
        self._taken: dict[str, int] = {}
        self._kept: list[Any] = []
        self._constant_cache: dict[Any, Tensor] = {}
        self._cast_cache: dict[tuple[str, torch.dtype], Tensor] = {}

    # -- layers --------------------------------------------------------------------------------------------------------------

    def add(self, kind: str, *arguments: Any, inputs: Mapping[int, Tensor] | None = None, **attributes: Any) -> Tensor:
        """Add a layer and return its first output; see `add_layer`."""
        return self.add_layer(kind, *arguments, inputs=inputs, **attributes).get_output(0)

    def add_layer(
        self, kind: str, *arguments: Any, inputs: Mapping[int, Tensor] | None = None, owner: Any = None, **attributes: Any
    ) -> Any:
        """Add a layer and return it.

        Args:
            kind: ``"activation"`` calls ``network.add_activation``.
            *arguments: The arguments of that call, in order.
            inputs: Tensors for further inputs, by index.
            owner: What the layer is added to instead of the network: an ``ILoop``.
            **attributes: Attributes to set on the layer.

        Raises:
            BuildError: TensorRT refuses the layer or its shapes; with the node, its source line and TensorRT's message.
        """
        try:
            layer = getattr(self.network if owner is None else owner, f"add_{kind}")(*arguments)
        except (TypeError, RuntimeError) as error:
            raise self.error(f"the {kind} layer was given arguments of a wrong type: {error}") from error
        if layer is None:
            raise self.error(f"TensorRT refuses the {kind} layer")
        self._last_name = layer.name = self._name()
        for name, value in attributes.items():
            setattr(layer, name, value)
        for index, tensor in (inputs or {}).items():
            layer.set_input(index, tensor)
        for index in range(layer.num_outputs):
            self._check(kind, layer.get_output(index))
        if layer.num_outputs:
            self.kinds.add((kind, self.dtype(layer.get_output(0))))
        return layer

    def error(self, what: str) -> BuildError:
        """Return an error about the node being converted, with TensorRT's last message."""
        node, said = self._node, self.messages.last_error
        place = f"{node.name} = {node.target}{where(node)}: " if node is not None else ""
        return BuildError(f"{place}{what}" + (f". {self.flavour.name} says: {said}" if said else ""))

    def _check(self, kind: str, tensor: Tensor) -> None:
        if tensor is None:
            raise self.error(f"the {kind} layer has no output")
        try:
            rank = len(tensor.shape)
        except (RuntimeError, ValueError) as error:
            raise self.error(f"the shape of the {kind} layer cannot be computed: {error}") from error
        if rank > 8:
            raise self.error(f"the {kind} layer makes a tensor of rank {rank}; TensorRT has at most 8")

    def _name(self) -> str:
        self._count += 1
        if self._has_neutral_names or self._node is None:
            return f"layer_{self._count}"
        stem = self._node.name
        number = self._taken[stem] = self._taken.get(stem, -1) + 1
        return f"{stem}.{number}" if number else stem

    # -- constants -----------------------------------------------------------------------------------------------------------

    def constant(self, value: torch.Tensor | float, dtype: torch.dtype | None = None, rank: int | None = None) -> Tensor:
        """Add a constant; equal small ones and repeated uses of one tensor share a layer.

        Args:
            value: A tensor or a number. float64 becomes float32, int16 and uint8 become int32: TensorRT has no such constants.
            dtype: The type to convert it to; its own when None.
            rank: The rank to give it by leading dimensions of size 1; its own when None.
        """
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(value, dtype=dtype)
        tensor = value.detach().to("cpu", dtype or value.dtype)
        tensor = tensor.to(_CONSTANT_DTYPE.get(tensor.dtype, tensor.dtype)).contiguous()
        if rank is not None and tensor.dim() < rank:
            tensor = tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))
        shape = tuple(tensor.shape)
        if tensor.numel() <= _SMALL:
            key: Any = (tensor.dtype, shape, tensor.view(-1).view(torch.uint8).numpy().tobytes())
        else:
            key = (tensor.dtype, shape, tensor.data_ptr())
        if key not in self._constant_cache:
            self._constant_cache[key] = self.add("constant", shape, self.weights(tensor))
            self.constants[self._last_name] = tensor
        return self._constant_cache[key]

    def weights(self, tensor: torch.Tensor) -> Any:
        """Return a contiguous CPU tensor as weights, an argument of some layers; its memory lives as long as the network."""
        tensor = tensor.detach()
        self._kept.append(tensor)
        if tensor.numel() == 0:
            return self.trt.Weights(self.flavour.dtype(tensor.dtype))
        if tensor.dtype == torch.bfloat16:
            return self.trt.Weights(self.flavour.dtype(tensor.dtype), tensor.data_ptr(), tensor.numel())
        return tensor.numpy()

    def add_weighted(self, kind: str, *arguments: Any, data: Mapping[str, torch.Tensor], **attributes: Any) -> Tensor:
        """Add a layer that holds weights of its own, and remember their data.

        Args:
            kind: See `add_layer`.
            *arguments: See `add_layer`; make those that are weights with `weights`.
            data: The weights by attribute name: ``{"kernel": ..., "bias": ...}``.
            **attributes: See `add_layer`; ``inputs`` too.
        """
        output = self.add(kind, *arguments, **attributes)
        self.constants.update({f"{self._last_name}.{part}": tensor for part, tensor in data.items()})
        return output

    # -- types ---------------------------------------------------------------------------------------------------------------

    def dtype(self, tensor: Tensor) -> torch.dtype:
        """Return the dtype of a tensor of the network."""
        return self.flavour.torch_dtype(tensor.dtype)

    def cast(self, value: Tensor | torch.Tensor, dtype: torch.dtype) -> Tensor | torch.Tensor:
        """Convert a value to `dtype`: no layer where it has that type or is a constant, and one for each tensor and dtype."""
        if isinstance(value, torch.Tensor):
            return value.to(dtype)
        if self.dtype(value) == dtype:
            return value
        key = (value.name, dtype)
        if key not in self._cast_cache:
            self._cast_cache[key] = self.add("cast", value, self.flavour.dtype(dtype))
        return self._cast_cache[key]

    def identity(self, tensor: Tensor) -> Tensor:
        """Add a layer that does nothing, where TensorRT wants a tensor of its own."""
        return self.add("identity", tensor)
