"""The interpreter: evaluates what the outputs of a network need, on demand, without recursion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.dtypes import ARITHMETIC
from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.layers import Evaluation, LayerCall, evaluation_of
from tiacc.backends.tensorrt.interpreter.network import Layer, Loop, Network, TensorType
from tiacc.backends.tensorrt.interpreter.schedule import Schedule
from tiacc.errors import InvalidArgumentError


class NetworkInterpreter:
    """Evaluates an ``INetworkDefinition`` with torch on the CPU: the values that TensorRT was told to compute.

    The network is read once, when this is made, and must not change afterwards; it may be built before or later.
    Several threads may call `run` at once, on one interpreter or on several of one network.

    Precision: each layer computes in `compute_dtype` and its floating outputs are rounded to the dtype that the network
    declares. In the default, float32, a half-precision layer so behaves like a GPU kernel that accumulates in float32
    and rounds once, and a float32 layer like torch's. float64 gives the exact network to compare float32 kernels with.
    None computes in the tensors' own dtype with torch's CPU kernels, most of which accumulate in float32 for float16
    and bfloat16, and round between the steps of a layer that has several. What only moves values is exact, whatever the
    dtype.

    Checks: every value must have the shape and dtype that the network declares for it.

    Args:
        trt: The module ``tensorrt`` or ``tensorrt_rtx`` that made the network.
        network: The ``INetworkDefinition``.
        constants: Values of weights, ahead of what is read from the network: under ``"<layer name>"`` for the weights
            of a constant and the kernel of a convolution, under ``"<layer name>.<attribute>"`` for any other
            (``"conv_1.bias"``). The bindings have no way to read BF16, FP8, INT4 and FP4 weights; without an entry here
            they are read from the library's memory.
        compute_dtype: The dtype that arithmetic is done in: ``torch.float32``, ``torch.float64`` or None.
        seed: Of random fills. They have the distribution that TensorRT's have, and other values.

    Raises:
        InvalidArgumentError: `compute_dtype` is none of these.
        InterpretationError: The network is invalid: TensorRT itself cannot infer a type in it, or it has a cycle.
        UnsupportedLayerError: The outputs need a layer of a type that is not evaluated; the message names it and says
            why.
    """

    def __init__(
        self,
        trt: Any,
        network: Any,
        constants: Mapping[str, Tensor] | None = None,
        *,
        compute_dtype: torch.dtype | None = torch.float32,
        seed: int = 0,
    ) -> None:
        if compute_dtype not in (None, torch.float32, torch.float64):
            raise InvalidArgumentError(f"compute_dtype is {compute_dtype}; give torch.float32, torch.float64 or None")
        self._network = Network(trt, network)
        self._schedule = Schedule(self._network)
        self._constants = dict(constants or {})
        self._compute_dtype = compute_dtype
        self._seed = seed
        layers = self._network.layers
        self._evaluations = {
            index: evaluation_of(layers[index].kind, layers[index].name)
            for index in self._schedule.varies
            if layers[index].kind not in _CONTROL_KINDS
        }
        self._types = {
            index: tuple(self._network.type_of(layers[index], place) for place in range(len(layers[index].outputs)))
            for index in self._schedule.varies
        }

    @property
    def inputs(self) -> dict[str, TensorType]:
        """The network's inputs by name, as it declares them."""
        return dict(self._network.inputs)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's outputs by name, in its order.

        Args:
            feeds: One tensor for each network input, of its dtype and a shape that it admits. They are not written to.

        Returns:
            New tensors on the CPU. INT4 and FP4 ones are carried in int8 and float32.

        Raises:
            InvalidArgumentError: An input is missing, unknown, or of a wrong dtype or shape.
            InterpretationError: A value contradicts the network's declaration, a layer cannot compute its output, or an
                assertion of the network fails.
        """
        values = self._checked_feeds(feeds)
        with torch.no_grad():
            run = _Run(self, values)
            run.demand([*self._network.outputs])
            run.check_assertions(self._schedule.assertions)
            return {name: run.values[name].clone(memory_format=torch.contiguous_format) for name in self._network.outputs}

    def _checked_feeds(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        declared = self._network.inputs
        if set(feeds) != set(declared):
            raise InvalidArgumentError(f"feeds has inputs {sorted(feeds)}; the network's are {sorted(declared)}")
        values = {}
        for name, want in declared.items():
            value = feeds[name]
            if not isinstance(value, Tensor):
                raise InvalidArgumentError(f"feeds[{name!r}] is a {type(value).__name__}; give a torch.Tensor")
            if value.dtype != want.dtype or not _admits(want.shape, value.shape):
                have = f"{value.dtype} {tuple(value.shape)}"
                raise InvalidArgumentError(f"feeds[{name!r}] is {have}; the network declares {want}")
            values[name] = value.detach().cpu()
        return values


def interpret(trt: Any, network: Any, feeds: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Evaluate a network once; `options` are those of `NetworkInterpreter`."""
    return NetworkInterpreter(trt, network, **options).run(feeds)


_CONTROL_KINDS = frozenset(
    {"CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT", "ASSERTION"}
)


class _Run:
    """The state of one evaluation.

    Layers are generators that yield the name of each tensor they need before they use it; `demand` keeps them on a
    stack of its own, so that neither the depth of a network nor its loops meet Python's recursion limit.

    Attributes:
        values: The tensors that are alive, by name.
    """

    def __init__(self, interpreter: NetworkInterpreter, values: dict[str, Tensor]) -> None:
        self._network = interpreter._network
        self._schedule = interpreter._schedule
        self._evaluations = interpreter._evaluations
        self._types = interpreter._types
        self._constants = interpreter._constants
        self._compute_dtype = interpreter._compute_dtype
        self._generator = torch.Generator().manual_seed(interpreter._seed)
        self.values = values
        self._remaining: Counter[str] = Counter({name: self._schedule.uses[name] for name in values})
        self._iteration: dict[int, int] = {}
        self._count: dict[int, int | None] = {}
        self._states: dict[int, dict[int, Tensor]] = {}
        self._of_iteration: dict[int, list[str]] = {loop: [] for loop in self._network.loops}

    def demand(self, names: Sequence[str]) -> None:
        """Compute tensors, and whatever they need."""
        for root in names:
            if root in self.values:
                continue
            stack = [self._production(root)]
            while stack:
                wanted = next(stack[-1], None)
                if wanted is None:
                    stack.pop()
                elif wanted not in self.values:
                    stack.append(self._production(wanted))

    def check_assertions(self, indices: Sequence[int]) -> None:
        """Compute the conditions of assertion layers, and hold them to be true."""
        for index in indices:
            layer = self._network.layers[index]
            self.demand([_required(layer, 0)])
            self._check_assertion(layer)

    def _production(self, name: str) -> Iterator[str]:
        index, _ = self._network.producers[name]
        layer = self._network.layers[index]
        if layer.kind == "LOOP_OUTPUT":
            return self._loop(layer.scope)
        if layer.kind == "CONDITIONAL_OUTPUT":
            return self._conditional(layer)
        return self._layer(layer)

    def _layer(self, layer: Layer) -> Iterator[str]:
        if layer.kind != "RECURRENCE":
            yield from (name for name in layer.inputs if name is not None)
        self._store(layer, self._outputs(layer))
        self._release(self._schedule.releases.get(layer.index, ()))

    def _conditional(self, layer: Layer) -> Iterator[str]:
        condition = self._network.conditions[layer.scope]
        yield condition
        chosen = _required(layer, 0 if bool(self.values[condition]) else 1)
        yield chosen
        self._store(layer, [self.values[chosen]])
        self._release(name for name in self._schedule.releases.get(layer.index, ()) if name in (condition, chosen))

    def _loop(self, number: int) -> Iterator[str]:
        """Run a loop to its end and store all its outputs."""
        layers, loop = self._network.layers, self._network.loops[number]
        recurrences = [layers[index] for index in loop.recurrences]
        outputs = [layers[index] for index in loop.outputs if index in self._schedule.varies]
        collected: dict[int, list[Tensor]] = {layer.index: [] for layer in outputs}
        count = None
        if loop.count is not None:
            limit = _required(layers[loop.count], 0)
            yield limit
            count = int(self.values[limit])
        elif loop.condition is None:
            raise InterpretationError(f"{outputs[0]}: its loop has no trip limit")
        state: dict[int, Tensor] = {}
        for layer in recurrences:
            yield _required(layer, 0)
            state[layer.index] = self.values[_required(layer, 0)]
        self._count[number] = count
        done = 0
        while count is None or done < count:
            self._begin_iteration(number, done, state)
            if loop.condition is not None:
                condition = _required(layers[loop.condition], 0)
                yield condition
                if not bool(self.values[condition]):
                    break
            for index in self._schedule.loop_assertions[number]:
                yield _required(layers[index], 0)
                self._check_assertion(layers[index])
            for layer in outputs:
                if layer.native.kind.name != "LAST_VALUE" or not self._is_recurrence(layer):
                    yield _required(layer, 0)
                    kept = collected[layer.index]
                    if layer.native.kind.name == "LAST_VALUE":
                        kept.clear()
                    kept.append(self.values[_required(layer, 0)])
            following: dict[int, Tensor] = {}
            for layer in recurrences:
                yield _required(layer, 1)
                following[layer.index] = self.values[_required(layer, 1)]
            state, done = following, done + 1
        self._drop_iteration(number)
        for layer in outputs:
            if layer.native.kind.name != "LAST_VALUE":
                yield _required(layer, 1)
            self._store(layer, [self._loop_output(layer, loop, state, collected[layer.index])])
        self._release(self._schedule.borrowed[number])

    def _begin_iteration(self, number: int, iteration: int, state: dict[int, Tensor]) -> None:
        self._drop_iteration(number)
        self._iteration[number] = iteration
        self._states[number] = state

    def _drop_iteration(self, number: int) -> None:
        """Forget the values that vary with a loop."""
        for name in self._of_iteration[number]:
            self.values.pop(name, None)
        self._of_iteration[number].clear()
        self._states.pop(number, None)

    def _is_recurrence(self, output: Layer) -> bool:
        """Return whether what a loop output takes is the state of the same loop, so that its last value is the final state."""
        index, _ = self._network.producers.get(_required(output, 0), (-1, 0))
        return index in self._network.loops[output.scope].recurrences

    def _loop_output(self, layer: Layer, loop: Loop, state: dict[int, Tensor], collected: list[Tensor]) -> Tensor:
        kind = layer.native.kind.name
        if kind == "LAST_VALUE":
            if self._is_recurrence(layer):
                return state[self._network.producers[_required(layer, 0)][0]]
            if not collected:
                raise InterpretationError(f"{layer}: the loop ran no iteration that could give a last value")
            return collected[0]
        length = int(self.values[_required(layer, 1)])
        if length != len(collected):
            raise InterpretationError(f"{layer}: the loop ran {len(collected)} times, the output is declared to have {length}")
        if collected:
            return torch.stack(collected if kind == "CONCATENATE" else collected[::-1], layer.native.axis)
        declared = self._types[layer.index][0]
        if declared is None or any(size < 0 for axis, size in enumerate(declared.shape) if axis != layer.native.axis):
            raise InterpretationError(f"{layer}: the loop ran no iteration, and the shape of its output is dynamic")
        return torch.empty([max(size, 0) for size in declared.shape], dtype=declared.dtype)

    def _check_assertion(self, layer: Layer) -> None:
        if not bool(self.values[_required(layer, 0)].all()):
            raise InterpretationError(f"{layer} does not hold: {layer.native.message}")

    def _outputs(self, layer: Layer) -> Sequence[Tensor]:
        """Return what a layer computes from its inputs, which are there."""
        if layer.kind in ("RECURRENCE", "ITERATOR"):
            if layer.scope not in self._states:
                raise InterpretationError(f"{layer} is used outside its loop")
            return [self._states[layer.scope][layer.index] if layer.kind == "RECURRENCE" else self._slice_of_iteration(layer)]
        if layer.kind == "CONDITIONAL_INPUT":
            return [self.values[_required(layer, 0)]]
        evaluation = self._evaluations[layer.index]
        try:
            result = evaluation.function(self._call(layer, evaluation))
        except InterpretationError as error:
            raise type(error)(f"{layer}: {error}" if layer.name not in str(error) else str(error)) from error
        except (RuntimeError, IndexError, ValueError, TypeError, OverflowError) as error:
            # Torch's complaint about operands that do not fit; the layer is what the reader needs to know.
            inputs = [None if n is None else f"{self.values[n].dtype} {tuple(self.values[n].shape)}" for n in layer.inputs]
            raise InterpretationError(f"{layer} cannot be evaluated on {inputs}: {error}") from error
        return [result] if isinstance(result, Tensor) else result

    def _call(self, layer: Layer, evaluation: Evaluation) -> LayerCall:
        compute_dtype = self._compute_dtype if evaluation.is_arithmetic else None
        inputs = tuple(None if name is None else self.values[name] for name in layer.inputs)
        if compute_dtype is not None:
            inputs = tuple(x.to(compute_dtype) if x is not None and x.dtype in ARITHMETIC else x for x in inputs)
        types = self._types[layer.index]
        return LayerCall(
            trt=self._network.trt,
            layer=layer.native,
            kind=layer.kind,
            name=layer.name,
            inputs=inputs,
            output_shapes=tuple(None if declared is None else declared.shape for declared in types),
            output_dtypes=tuple(None if declared is None else declared.dtype for declared in types),
            compute_dtype=compute_dtype,
            constants=self._constants,
            generator=self._generator,
        )

    def _slice_of_iteration(self, layer: Layer) -> Tensor:
        x, axis = self.values[_required(layer, 0)], layer.native.axis
        place = self._iteration[layer.scope]
        if layer.native.reverse:
            count = self._count[layer.scope]
            if count is None:
                raise InterpretationError(f"{layer} runs backwards in a loop without a trip count")
            place = count - 1 - place
        if not 0 <= place < x.shape[axis]:
            raise InterpretationError(f"{layer}: iteration wants element {place} of axis {axis} of {tuple(x.shape)}")
        return x.select(axis, place)

    def _store(self, layer: Layer, outputs: Sequence[Tensor]) -> None:
        """Round a layer's outputs to the declared dtypes, hold them to the declarations, and keep those that have a use."""
        for name, declared, value in zip(layer.outputs, self._types[layer.index], outputs, strict=False):
            if name is None or declared is None:
                continue
            if value.dtype == self._compute_dtype and declared.dtype in ARITHMETIC:
                value = value.to(declared.dtype)
            if value.dtype != declared.dtype or not _admits(declared.shape, value.shape):
                raise InterpretationError(
                    f"{layer}: output {name!r} is {value.dtype} {tuple(value.shape)}; the network declares {declared}"
                )
            uses = self._schedule.uses[name]
            if not uses:
                continue
            self.values[name] = value
            self._remaining[name] = uses
            for loop in self._schedule.varies[layer.index]:
                self._of_iteration[loop].append(name)

    def _release(self, names: Iterable[str]) -> None:
        """Count a use of each tensor, and forget those that have no more."""
        for name in names:
            self._remaining[name] -= 1
            if self._remaining[name] <= 0:
                self.values.pop(name, None)


def _required(layer: Layer, place: int) -> str:
    name = layer.inputs[place] if place < len(layer.inputs) else None
    if name is None:
        raise InterpretationError(f"{layer}: input {place} is not connected")
    return name


def _admits(declared: Sequence[int], actual: Sequence[int]) -> bool:
    return len(declared) == len(actual) and all(want in (-1, have) for want, have in zip(declared, actual, strict=True))
