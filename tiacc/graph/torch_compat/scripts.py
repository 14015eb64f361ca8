"""TorchScript modules and their graphs: torch's private names for them."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch

from tiacc.errors import ImportGraphError, InvalidArgumentError

Graph: TypeAlias = Any
"""A `torch._C.Graph`. torch's own stubs of its intermediate representation lack most of the methods, so these types are aliases."""

Block: TypeAlias = Any
"""A `torch._C.Block`."""

Node: TypeAlias = Any
"""A `torch._C.Node`."""

Value: TypeAlias = Any
"""A `torch._C.Value`."""

Type: TypeAlias = Any
"""A `torch._C.Type`: the type of a TorchScript value."""

Function: TypeAlias = Any
"""A `torch.jit.ScriptFunction`."""


def frozen_copy(
    module: torch.jit.ScriptModule, keep_methods: Sequence[str] = ()
) -> tuple[torch.jit.ScriptModule, tuple[str, ...], tuple[str, ...]]:
    """Return a copy of a scripted module in evaluation mode, inlined, its parameters turned into constants of its graphs.

    Besides ``forward`` the copy has the methods that ``forward`` does not call. A method that it does call is a part of it: kept as a
    method of its own as well, it would keep a second copy of its weights in the file; only those in `keep_methods` are.

    Returns:
        The copy, the names of its methods besides ``forward``, and the names of those left out.

    Raises:
        InvalidArgumentError: It has no such method.
        ImportGraphError: torch cannot copy or freeze it.
    """
    methods = [name for name in module._c._method_names() if not name.startswith("__")]
    for name in keep_methods:
        if name not in methods:
            raise InvalidArgumentError(f"keep_methods has {name!r}, which is no method of the model; it has {', '.join(methods)}")
    try:
        duplicate = copy.deepcopy(module)
        if is_training(duplicate):
            duplicate.eval()
        helpers = _called_methods(duplicate._c, "forward") - set(keep_methods)
        others = [name for name in methods if name != "forward"]
        kept = [name for name in others if name not in helpers]
        frozen = torch._C._freeze_module(duplicate._c, kept, True, False)
        for name in ("forward", *kept):
            _inline_python_functions(frozen._get_method(name).graph)
    except RuntimeError as error:
        raise ImportGraphError(f"torch cannot freeze the model: {str(error).splitlines()[0]}") from error
    dropped = tuple(name for name in others if name in helpers and not name.startswith("_"))
    return torch.jit._recursive.wrap_cpp_module(frozen), tuple(kept), dropped


def is_training(module: torch.nn.Module) -> bool:
    """Return whether a part of a module is in training mode; a frozen one has no mode."""
    return any(getattr(child, "training", False) for child in module.modules())


def keeps_state(module: torch.jit.ScriptModule) -> bool:
    """Return whether calls of a scripted module in evaluation mode may change it, so that what they give depends on those before."""
    if not may_keep_state(module.inlined_graph):
        return False
    try:
        frozen, _, _ = frozen_copy(module)
    except ImportGraphError:
        return True
    return any(node.kind() == "prim::GetAttr" for node in nodes_of(forward_graph(frozen)))  # what nothing writes into is a constant


def may_keep_state(graph: Graph) -> bool:
    """Return whether the inlined code of a module, in whatever mode, may change it; a tenth of the work of `keeps_state`."""
    if any(graph.findAllNodes(kind) for kind in OPAQUE | {"prim::SetAttr"}):
        return True
    aliases = graph.alias_db()  # it has code that it does not know write into all that it is given
    attributes = (output for node in graph.findAllNodes("prim::GetAttr") for output in outputs_of(node))
    return any(map(aliases.has_writers, attributes)) and any("!" in node.schema() for node in nodes_of(graph))


def _inline_python_functions(graph: Graph) -> None:
    """Put what was traced of each `torch.autograd.Function` in the place of its call, which cannot be saved."""
    for node in graph.findAllNodes("prim::PythonOp"):
        if node.hasAttribute("Subgraph"):
            with graph.insert_point_guard(node):
                results = graph.insertGraph(node.g("Subgraph"), inputs_of(node))
            for value, result in zip(outputs_of(node), results):
                value.replaceAllUsesWith(result)
            node.destroy()


def _called_methods(module: torch._C.ScriptModule, method: str) -> set[str]:
    """Return the methods of a module that one of its methods calls on it, directly or through others."""
    found: set[str] = set()
    pending = [method]
    while pending:
        graph: Graph = module._get_method(pending.pop()).graph
        own = next(iter(graph.inputs())).unique()
        for node in graph.findAllNodes("prim::CallMethod"):
            name = node.s("name")
            if next(iter(node.inputs())).unique() == own and name not in found:
                found.add(name)
                pending.append(name)
    return found


def forward_graph(module: torch.jit.ScriptModule) -> Graph:
    """Return the live graph of ``forward``: an edit of it is an edit of the module."""
    return module._c._get_method("forward").graph


def forward_arguments(module: torch.jit.ScriptModule) -> list[torch._C.Argument]:
    """Return the arguments of ``forward`` as its schema has them, without ``self``."""
    return list(module._c._get_method("forward").schema.arguments)[1:]


_TORCH_FOLDER = str(Path(torch.__file__).parent)

_PLACES = (
    re.compile(r'File "([^"]+)", line (\d+)'),  # a scripted module
    re.compile(r"^(\S.*?)\((\d+)\): ", re.MULTILINE),  # a traced module: the Python stack, innermost first
    re.compile(r'^([^\s:"]+\.py):(\d+)', re.MULTILINE),  # a module loaded from a file
)


def source_of(node: Node) -> str:
    """Return ``FILE:LINE`` of the source of a TorchScript node, the first outside of torch itself; an empty string if unknown."""
    return _first_place(node.sourceRange())


@lru_cache(maxsize=256)  # nodes of one line follow each other, or come again with the next iteration of a loop
def _first_place(text: str) -> str:
    for pattern in _PLACES:
        places = pattern.findall(text)
        if places:
            file, line = next((place for place in places if not place[0].startswith(_TORCH_FOLDER)), places[0])
            return f"{file}:{line}"
    return ""


_INSTANCE = re.compile(r"(?:^|\.)([^.()]+)\([^()]*\)")
_NO_MODULES = frozenset({"SELF", "UNKNOWN_INSTANCE"})  # a method of the module that calls it, and a function


def modules_of(node: Node) -> tuple[str, ...]:
    """Return the names of the modules that a TorchScript node was inlined from, outermost first; containers are not among them."""
    return _modules_in(node.getModuleHierarchy())


@lru_cache(maxsize=4096)
def _modules_in(hierarchy: str) -> tuple[str, ...]:
    return tuple(name for name in _INSTANCE.findall(hierarchy) if name not in _NO_MODULES)


def weight_owner_of(value: Value) -> str | None:
    """Return the path of the module whose weight a TorchScript value is, as the frozen model names it; None where that is not told.

    Weights that are equal are one in a frozen model, under the name of one of them: what several nodes read tells nothing.
    """
    name = value.debugName()
    return name.removeprefix("self.").rpartition(".")[0] if name.startswith("self.") and len(value.uses()) == 1 else None


def constant_of(value: Value) -> Any:
    """Return what a ``prim::Constant`` holds; tensors are detached."""
    item = value.toIValue()
    return item.detach() if isinstance(item, torch.Tensor) else item


def is_literal(value: Value) -> bool:
    """Return whether a value is a constant of the code, and no attribute of the module that became one when it was frozen."""
    return value.node().kind() == "prim::Constant" and not value.debugName().startswith("self.")


def splice_branch(node: Node, taken: int) -> list[Node]:
    """Replace a ``prim::If`` by the nodes of one of its blocks; return these in order."""
    block = blocks_of(node)[taken]
    inner = list(block.nodes())
    for moved in inner:
        moved.moveBefore(node)
    for value, result in zip(outputs_of(node), block.outputs()):
        value.replaceAllUsesWith(result)
    node.destroy()
    return inner


_RESHAPING_WRITES = {
    "aten::set_data",
    *(f"aten::{name}_" for name in ("resize", "resize_as", "set", "t", "transpose", "swapaxes", "swapdims", "squeeze", "unsqueeze")),
    "aten::as_strided_",
}


def reshaped_values(node: Node) -> list[Value]:
    """Return the values whose shape a node changes in place, or may change: ``out=`` resizes what it is given."""
    text = node.schema()
    if "!" not in text:
        return []
    if node.kind() in _RESHAPING_WRITES:
        return [next(iter(node.inputs()))]
    return [value for value, argument in zip(inputs_of(node), torch._C.parse_schema(text).arguments) if argument.is_out]


def function_of(graph: Graph) -> Function:
    """Return a function whose code is `graph`."""
    lint(graph)
    return torch._C._create_function_from_graph("forward", graph)


def remove_attribute(graph: Graph, name: str) -> None:
    """Remove an attribute from all nodes of a graph."""
    for node in nodes_of(graph):
        if node.hasAttribute(name):
            node.removeAttribute(name)


def nodes_of(graph: Graph) -> list[Node]:
    """Return the nodes of a graph, those in blocks included."""
    found: list[Node] = []
    blocks = [graph.return_node().owningBlock()]
    while blocks:
        for node in blocks.pop().nodes():
            found.append(node)
            blocks.extend(blocks_of(node))
    return found


# An iterator of torch's tells its end by an exception of C++, which costs ten times what a node's few values do: so these are counted.


def inputs_of(node: Node) -> list[Value]:
    """Return the values that a node reads."""
    return list(islice(node.inputs(), node.inputsSize()))


def outputs_of(node: Node) -> list[Value]:
    """Return the values that a node gives."""
    return list(islice(node.outputs(), node.outputsSize()))


_WITHOUT_BLOCKS = frozenset(f"prim::{kind}" for kind in ("Constant", "GetAttr", "NumToTensor", "ListConstruct", "TupleConstruct"))


def blocks_of(node: Node) -> list[Block]:
    """Return the blocks of a node; only constructs of the language have any."""
    kind = node.kind()
    return list(node.blocks()) if kind.startswith("prim::") and kind not in _WITHOUT_BLOCKS else []


OPAQUE = frozenset({"prim::CallMethod", "prim::CallFunction", "prim::fork", "prim::awaitable"})
"""The nodes that run code which is not in the graph."""


def remove_dead_code(graph: Graph) -> None:
    """Remove the nodes of a graph whose results nobody reads, and that change nothing."""
    torch._C._jit_pass_dce(graph)


def lint(graph: Graph) -> None:
    """Check that a graph is well formed.

    Raises:
        RuntimeError: It is not.
    """
    torch._C._jit_pass_lint(graph)


def written_values(node: Node) -> list[Value]:
    """Return the tensors that a node writes into, or may write into."""
    if node.kind() in OPAQUE:
        return [value for value in inputs_of(node) if "Tensor" in str(value.type())]
    text = node.schema()
    if text == "(no schema)" or "!" not in text:
        return []
    arguments = torch._C.parse_schema(text).arguments
    return [
        value
        for value, argument in zip(inputs_of(node), arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and (str(argument.type) == "Tensor" or node.kind().startswith("aten::_foreach"))
    ]


def without_optional(type_: Type) -> Type:
    """Return the type of a value that might be None by `type_`, and is not."""
    return type_.getElementType() if type_.kind() == "OptionalType" else type_


def insert_behind(graph: Graph, value: Value, kind: str, number: int) -> None:
    """Insert a node ``kind(value, number) -> ()`` behind the node, or at the beginning of the block, that makes a value."""
    made_by = value.node()
    if made_by.kind() == "prim::Param":
        first = next(iter(made_by.owningBlock().nodes()), None)
        place = first if first is not None else made_by.owningBlock().returnNode()
    else:
        place = made_by
    with graph.insert_point_guard(place):
        constant = graph.insertConstant(number)
    node = graph.create(kind, [value, constant], 0)
    if made_by.kind() == "prim::Param":
        node.insertBefore(place)
    else:
        node.insertAfter(place)


def replace_inputs(node: Node, new: dict[int, Value]) -> None:
    """Replace the inputs of a node, and of those in its blocks, that have the given unique numbers."""
    for index, value in enumerate(inputs_of(node)):
        if value.unique() in new:
            node.replaceInput(index, new[value.unique()])
    for block in blocks_of(node):
        for inner in (*block.nodes(), block.returnNode()):
            replace_inputs(inner, new)


def hold_values(graph: Graph, block: Block, condition: Value, outcome: bool) -> None:
    """Keep torch's interpreter from losing values that loops read, in a block that is new around them: a branch of a ``prim::If``.

    It runs a loop as a part of the node that reads its one result. A value that both read goes with the first iteration then. It does
    not where some value of the block is read in the loop and not behind it, as constants are at the top level of a graph. So each such
    loop is given a condition of its own that is true.

    Args:
        graph: The graph.
        block: The branch.
        condition: The condition of the branch.
        outcome: What that is when the block runs.
    """
    nodes = list(block.nodes())
    for loop in (node for node in nodes if node.kind() == "prim::Loop" and [len(value.uses()) for value in outputs_of(node)] == [1]):
        with graph.insert_point_guard(nodes[0]):
            kind, operands = ("aten::__or__", [condition, condition]) if outcome else ("aten::__not__", [condition])
            condition, outcome = graph.insertNode(graph.create(kind, operands, 1)).output(), True
            condition.setType(torch._C.BoolType.get())
        body = next(iter(loop.blocks()))
        carried, result = list(body.inputs())[1], list(body.outputs())[1]
        with graph.insert_point_guard(body.returnNode()):
            choice = graph.insertNode(graph.create("prim::If", [condition], 1))
        for value in (result, carried):
            choice.addBlock().registerOutput(value)
        choice.output().setType(result.type())
        body.returnNode().replaceInput(1, choice.output())


def uninitialised_values(graph: Graph) -> set[int]:
    """Return the unique numbers of the values that may be variables without a value."""
    found: set[int] = set()
    if not graph.findAllNodes("prim::Uninitialized"):
        return found
    nodes = nodes_of(graph)
    count = -1
    while count < len(found):
        count = len(found)
        for node in nodes:
            if node.kind() == "prim::Uninitialized":
                found.add(node.output().unique())
            elif node.kind() == "prim::If":
                for block in blocks_of(node):
                    found.update(_passed_on(found, block.outputs(), outputs_of(node)))
            elif node.kind() == "prim::Loop":
                body = next(iter(node.blocks()))
                inner = list(body.inputs())[1:]
                found.update(_passed_on(found, inputs_of(node)[2:], inner))
                found.update(_passed_on(found, list(body.outputs())[1:], inner))
                found.update(_passed_on(found, inner, outputs_of(node)))
    return found


def _passed_on(found: set[int], before: Sequence[Value], after: Sequence[Value]) -> list[int]:
    return [new.unique() for old, new in zip(before, after) if old.unique() in found]
