"""When a value of a network is computed anew, and when it is needed no longer: worked out once, before any evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.network import Layer, Network

_PINNED = 1 << 60


class Schedule:
    """The lifetimes of a network's values.

    A value *varies* with a loop if iterations of the loop may give it different values; it then lives for one
    iteration. Any other value lives until its last use; uses within a loop that it does not vary with count as one use,
    by the loop.

    Attributes:
        varies: For each layer by index, the loops that its outputs vary with.
        uses: For each tensor by name, how many uses there will be.
        releases: For each layer by index, the tensors that it uses once, an entry a use.
        borrowed: For each loop, the tensors that it uses and that do not vary with it: used once more when it has
            ended.
        assertions: The assertion layers that are always reached, outside loops.
        loop_assertions: For each loop, those to check in its every iteration.

    Raises:
        InterpretationError: The network has a cycle that goes through no loop.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.varies: dict[int, frozenset[int]] = {}
        self.uses: Counter[str] = Counter()
        self.releases: dict[int, list[str]] = {}
        self.borrowed: dict[int, set[str]] = {loop: set() for loop in network.loops}
        self.assertions: list[int] = []
        self.loop_assertions: dict[int, list[int]] = {loop: [] for loop in network.loops}
        self._loop_varies: dict[int, frozenset[int]] = {loop: frozenset() for loop in network.loops}
        order = self._order()
        self._settle(order)
        self._count_uses(order)
        self._place_assertions(order)

    def dependencies(self, layer: Layer) -> list[str]:
        """Return the tensors that a layer needs, the condition of a conditional's output among them."""
        names = [name for name in layer.inputs if name is not None]
        if layer.kind == "CONDITIONAL_OUTPUT":
            names.append(self._network.conditions[layer.scope])
        return names

    def _roots(self) -> Iterator[int]:
        producers = self._network.producers
        yield from (producers[name][0] for name in self._network.outputs if name in producers)
        yield from (layer.index for layer in self._network.layers if layer.kind == "ASSERTION")

    def _order(self) -> list[int]:
        """Return the layers that the outputs need, each after those it needs itself, but for what comes back round a loop."""
        network = self._network
        order: list[int] = []
        done: set[int] = set()
        path: set[int] = set()
        for root in self._roots():
            stack = [(root, iter(self._prerequisites(root)))]
            path.add(root)
            while stack:
                index, pending = stack[-1]
                following = next((need for need in pending if need not in done), None)
                if following is None:
                    stack.pop()
                    path.discard(index)
                    if index not in done:
                        done.add(index)
                        order.append(index)
                elif following in path:
                    raise InterpretationError(f"{network.layers[following]} needs its own output: the network has a cycle")
                else:
                    path.add(following)
                    stack.append((following, iter(self._prerequisites(following))))
        return order

    def _prerequisites(self, index: int) -> list[int]:
        network = self._network
        layer = network.layers[index]
        names = self.dependencies(layer)
        if layer.kind == "RECURRENCE":
            names = names[:1]
        needed = [network.producers[name][0] for name in names if name in network.producers]
        if layer.kind == "LOOP_OUTPUT":
            # A loop runs as a whole: its limits and its recurrences' next values come with any output.
            for boundary in network.loops[layer.scope].state():
                needed += [network.producers[name][0] for name in network.layers[boundary].inputs if name in network.producers]
        return needed

    def _settle(self, order: list[int]) -> None:
        """Find what each layer varies with; a loop varies with what its boundary's inputs vary with, to a fixed point."""
        network = self._network
        while True:
            for index in order:
                self.varies[index] = self._variation(network.layers[index])
            before = dict(self._loop_varies)
            for number, loop in network.loops.items():
                found = [self._variation_of(name) for index in loop.boundary() for name in network.layers[index].inputs]
                self._loop_varies[number] = frozenset().union(*found) - {number}
            if self._loop_varies == before:
                return

    def _variation_of(self, name: str | None) -> frozenset[int]:
        produced = None if name is None else self._network.producers.get(name)
        return frozenset() if produced is None else self.varies.get(produced[0], frozenset())

    def _variation(self, layer: Layer) -> frozenset[int]:
        inputs = layer.inputs[:1] if layer.kind == "RECURRENCE" else self.dependencies(layer)
        found = frozenset[int]().union(*(self._variation_of(name) for name in inputs))
        if layer.kind in ("RECURRENCE", "ITERATOR"):
            return found | self._loop_varies[layer.scope] | {layer.scope}
        if layer.kind == "LOOP_OUTPUT":
            return (found | self._loop_varies[layer.scope]) - {layer.scope}
        return found

    def _count_uses(self, order: list[int]) -> None:
        network = self._network
        users = dict.fromkeys(order)
        for index in order:
            layer = network.layers[index]
            if layer.kind == "LOOP_OUTPUT":
                users.update(dict.fromkeys(network.loops[layer.scope].state()))
        for index in users:
            for name in self.dependencies(network.layers[index]):
                self._count_use(name, network.layers[index])
        for name in network.outputs:
            self.uses[name] = _PINNED
        for name in (name for names in self.borrowed.values() for name in names):
            self.uses[name] += 1

    def _count_use(self, name: str, user: Layer) -> None:
        """Count one use of a tensor by a layer."""
        varies = self._variation_of(name)
        if user.kind in ("RECURRENCE", "ITERATOR", "LOOP_OUTPUT", "TRIP_LIMIT"):
            if user.scope in varies:
                self.uses[name] = _PINNED  # Lives until the iteration's values are dropped.
            else:
                self.borrowed[user.scope].add(name)
            return
        beyond = self.varies.get(user.index, frozenset()) - varies
        if not beyond:
            self.uses[name] += 1
            self.releases.setdefault(user.index, []).append(name)
            return
        outermost = [loop for loop in beyond if not self._loop_varies[loop] & beyond]
        if len(outermost) == 1:
            self.borrowed[outermost[0]].add(name)
        else:
            self.uses[name] = _PINNED

    def _place_assertions(self, order: list[int]) -> None:
        """Assign each assertion to the innermost loop it varies with; those in a branch of a conditional stay unchecked."""
        network = self._network
        is_guarded: dict[int, bool] = {}
        for index in order:
            layer = network.layers[index]
            made_by = [network.producers[name][0] for name in layer.inputs if name in network.producers]
            is_guarded[index] = layer.kind == "CONDITIONAL_INPUT" or any(is_guarded.get(need, False) for need in made_by)
            if layer.kind == "CONDITIONAL_OUTPUT":
                is_guarded[index] = False
            if layer.kind != "ASSERTION" or is_guarded[index]:
                continue
            loops = self.varies[index]
            if loops:
                innermost = max(loops, key=lambda loop: len(self._loop_varies[loop]))
                self.loop_assertions[innermost].append(index)
            else:
                self.assertions.append(index)
