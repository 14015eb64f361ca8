"""A backend for tiacc in under 80 lines of code: runs of float32 operators as ONNX Runtime sessions."""

from collections.abc import Sequence

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from tiacc.backends.base import SUPPORTED, BuildSpec, Engine, Support
from tiacc.errors import BuildError, EngineFormatError
from tiacc.graph import arguments, specs

SIMPLE = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "add": "Add", "sub": "Sub", "mul": "Mul", "matmul": "MatMul"}
KINDS = {f"aten.{name}.{overload}": kind for name, kind in SIMPLE.items() for overload in ("default", "Tensor")}
KINDS["aten.linear.default"] = "Einsum"


class OnnxRuntimeEngine:
    def __init__(self, payload: bytes, spec: BuildSpec | None = None) -> None:
        self.payload, self.session = payload, onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (spec.inputs, spec.outputs) if spec else ((), ())

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        feeds = {item.name: tensor.detach().contiguous().numpy() for item, tensor in zip(self.session.get_inputs(), inputs)}
        return [torch.from_numpy(array) for array in self.session.run(None, feeds)]

    def serialize(self) -> bytes:
        return self.payload


class OnnxRuntimeBackend:
    name = "onnxruntime"
    device_types = ("cpu",)

    def available(self) -> Support:
        return SUPPORTED

    def version(self) -> str:
        return onnxruntime.__version__

    def supports(self, node: fx.Node) -> Support:
        if str(node.target) not in KINDS:
            return Support(False, f"{node.target} is not written as ONNX")
        if any(not specs.is_tensor(item) or specs.tensor_of(item).dtype != torch.float32 for item in (node, *node.all_input_nodes)):
            return Support(False, "one of its tensors is not float32")
        return Support(arguments.bound(node).get("alpha", 1) == 1, "alpha is not 1")

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        nodes, weights, inputs = [], [], []
        for node in subgraph.graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "get_attr":
                weights.append(numpy_helper.from_array(specs.fetch_attr(subgraph, node.target).detach().numpy(), node.name))
            elif node.op == "call_function":
                if not (support := self.supports(node)):
                    raise BuildError(f"onnxruntime cannot build {node.name}{specs.where(node)}: {support.reason}")
                kind, names = KINDS[str(node.target)], [item.name for item in arguments.bound(node).values() if isinstance(item, fx.Node)]
                if kind == "Einsum":  # x @ weight.mT, and the bias if there is one
                    product = f"{node.name}_product" if len(names) == 3 else node.name
                    nodes.append(helper.make_node(kind, names[:2], [product], equation="...i,oi->...o"))
                    kind, names = "Add", [product, *names[2:]]
                if len(names) != 1 or kind != "Add":
                    nodes.append(helper.make_node(kind, names, [node.name]))
        results = [f"result_{place}" for place in range(len(spec.outputs))]
        for item, result in zip(subgraph.graph.output_node().args[0], results):
            nodes.append(helper.make_node("Identity", [item.name], [result]))
        graph = helper.make_graph(nodes, "segment", _infos(inputs, spec.inputs), _infos(results, spec.outputs), weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return OnnxRuntimeEngine(model.SerializeToString(), spec)

    def load(self, payload: bytes) -> Engine:
        try:
            onnx.checker.check_model(onnx.load_from_string(payload))
            return OnnxRuntimeEngine(payload)
        except Exception as error:  # onnx and protobuf raise types of their own for bytes that are no model
            raise EngineFormatError(f"these bytes are not an engine of the onnxruntime backend: {error}") from error


def _infos(names: Sequence[str], kinds: Sequence[specs.TensorSpec]) -> list[onnx.ValueInfoProto]:
    shapes = [[size if isinstance(size, int) else None for size in kind.shape] for kind in kinds]
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes)]
