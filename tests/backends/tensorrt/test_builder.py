"""Networks and plans: names, errors, targets, profiles, progress, threads."""

from __future__ import annotations

import operator
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import fx

from tests.backends.tensorrt.harness import check_graph, compile_for, graph_of, interpret, needs_rtx, network_of, spec_of
from tiacc.backends.base import BuildSpec, Profile
from tiacc.backends.tensorrt import builder, converters
from tiacc.backends.tensorrt.builder import BuildOptions, build_network, build_plan, profiles_of
from tiacc.backends.tensorrt.flavours import Flavour, load_flavour
from tiacc.errors import BuildError, InvalidArgumentError
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten


def _conv_net(dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    generator = torch.Generator().manual_seed(0)
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("weight", torch.randn(8, 3, 3, 3, generator=generator).to(dtype))
    root.register_buffer("bias", torch.randn(8, generator=generator).to(dtype))
    x = graph.placeholder("x")
    stem = graph.create_node(
        "call_function", aten.conv2d.default, (x, graph.get_attr("weight"), graph.get_attr("bias")), name="secret_stem"
    )
    graph.output((graph.call_function(aten.relu.default, (stem,)),))
    return fx.GraphModule(root, graph)


def _linear_net(dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("weight", torch.randn(5, 4).to(dtype))
    graph.output((graph.call_function(aten.linear.default, (graph.placeholder("x"), graph.get_attr("weight"))),))
    return fx.GraphModule(root, graph)


_X = TensorSpec((1, 3, 12, 12), torch.float32)


def _plan(gm: fx.GraphModule, inputs: list[TensorSpec], *profiles: Profile, **options: Any) -> builder.Plan:
    specs.propagate(gm, inputs)
    parsed = BuildOptions.parse({"target": ["sm86"], **options})
    definition = build_network(load_flavour("tensorrt_rtx"), gm, inputs, parsed)
    spec = BuildSpec(tuple(inputs), (), torch.device("cpu"), profiles)
    return build_plan(definition, profiles_of(spec), 1 << 28, parsed)


# -- plans ----------------------------------------------------------------------------------------------------------------------


def test_two_builds_are_identical() -> None:
    first, second = _plan(_conv_net(), [_X]), _plan(_conv_net(), [_X])
    assert first.data == second.data
    assert len(first.data) > 1000
    assert first.seconds > 0


@pytest.mark.parametrize("is_neutral", [False, True])
def test_names_of_nodes_are_in_the_plan_unless_they_shall_not(is_neutral: bool) -> None:
    assert (b"secret_stem" in _plan(_conv_net(), [_X], neutral_names=is_neutral).data) is not is_neutral


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    check_graph(_conv_net(dtype), [torch.randn(1, 3, 12, 12).to(dtype)], compile=True)


def test_several_targets_in_one_plan() -> None:
    one, many = _plan(_conv_net(), [_X]), _plan(_conv_net(), [_X], target="sm80, SM86,sm89,sm120")
    assert len(one.data) < len(many.data) < 2 * len(one.data)


def test_unknown_target() -> None:
    with pytest.raises(InvalidArgumentError, match=r"target='sm42'.*sm86"):
        BuildOptions.parse({"target": ["sm86", "sm42"]})


def test_targets_need_rtx() -> None:
    gm = _conv_net()
    specs.propagate(gm, [_X])
    native = Flavour("tensorrt", (11, 0, 0), load_flavour("tensorrt_rtx").module)
    definition = build_network(native, gm, [_X])
    with pytest.raises(BuildError, match="backend='tensorrt_rtx'"):
        build_plan(definition, (), 1 << 28, BuildOptions(target=("sm86",)))


# -- Turing -----------------------------------------------------------------------------------------------------------------------


def test_turing_has_no_float32_products() -> None:
    with pytest.raises(BuildError, match="'sm75' has no float32 matrix product"):
        _plan(_linear_net(), [TensorSpec((2, 4), torch.float32)], target=["sm75", "sm86"])
    with pytest.raises(BuildError, match="'sm75' has no bfloat16"):
        _plan(_linear_net(torch.bfloat16), [TensorSpec((2, 4), torch.bfloat16)], target=["sm75"])
    assert _plan(_linear_net(torch.float16), [TensorSpec((2, 4), torch.float16)], target=["sm75"]).data
    assert _plan(_conv_net(), [_X], target=["sm75"]).data


def test_a_failed_build_for_turing_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _plan(_conv_net(), [_X]).data
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_check_targets", lambda definition, target: None)
        with pytest.raises(BuildError, match="FP32 GEMM"):
            _plan(_linear_net(), [TensorSpec((2, 4), torch.float32)], target=["sm75"])
    assert _plan(_conv_net(), [_X]).data == before


# -- profiles -----------------------------------------------------------------------------------------------------------------------


def test_ranges_and_alternatives_are_profiles() -> None:
    spec = TensorSpec((Dim("n", 1, 2, 8), 3, Dim("h", 8, 12, 16), 12), torch.float32)
    one = _plan(_conv_net(), [spec])
    static = [Profile(((n, 3, h, 12),), ((n, 3, h, 12),), ((n, 3, h, 12),)) for n, h in ((1, 8), (2, 12), (8, 16))]
    three = _plan(_conv_net(), [spec], *static)
    assert len(three.data) > len(one.data)


def test_profiles_follow_from_the_inputs() -> None:
    spec = BuildSpec((TensorSpec((Dim("n", 1, 2, 8), 3), torch.float32),), (), torch.device("cpu"))
    assert profiles_of(spec) == (Profile(((1, 3),), ((2, 3),), ((8, 3),)),)


def test_bad_profile_is_refused() -> None:
    spec = TensorSpec((Dim("n", 1, 2, 8), 3, 12, 12), torch.float32)
    upside_down = Profile(((4, 3, 12, 12),), ((2, 3, 12, 12),), ((8, 3, 12, 12),))
    with pytest.raises(BuildError, match="min <= opt <= max"):
        _plan(_conv_net(), [spec], upside_down)


# -- errors -------------------------------------------------------------------------------------------------------------------------


def test_error_names_node_source_and_reason() -> None:
    gm = graph_of(lambda x, y: aten.add.Tensor(x, y), 2)
    types = [TensorSpec((2, 3), torch.float32), TensorSpec((2, 3), torch.float32)]
    specs.propagate(gm, types)
    node = next(node for node in gm.graph.nodes if node.op == "call_function")
    node.meta["source"] = "model.py:12"
    wrong = [TensorSpec((2, 3), torch.float32), TensorSpec((2, 4), torch.float32)]
    with pytest.raises(BuildError, match=r"add_tensor = aten\.add\.Tensor at model\.py:12: .*tensorrt_rtx says: .*broadcast"):
        build_network(load_flavour("tensorrt_rtx"), gm, wrong)


def test_converter_is_held_to_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = graph_of(lambda x: aten.relu.default(x), 1)
    specs.propagate(gm, [spec_of(torch.randn(2, 3))])
    wrong = converters.Converter(lambda call: call.net.cast(call.tensor("self"), torch.float16), None, *[frozenset()] * 3, "")
    monkeypatch.setitem(converters.__dict__["_table"], aten.relu.default, wrong)
    with pytest.raises(BuildError, match=r"made torch.float16 of shape \(2, 3\) where the graph has float32"):
        network_of(gm, [spec_of(torch.randn(2, 3))])


def test_node_without_converter() -> None:
    gm = graph_of(lambda x: aten.erfinv.default(x), 1)
    specs.propagate(gm, [spec_of(torch.randn(2))])
    with pytest.raises(BuildError, match="no converter for aten"):
        network_of(gm, [spec_of(torch.randn(2))])


def test_graph_specialised_to_one_size() -> None:
    gm = graph_of(lambda x: aten.relu.default(x), 1)
    specs.propagate(gm, [TensorSpec((2, 3), torch.float32)])
    with pytest.raises(BuildError, match="specialised to size 2"):
        network_of(gm, [TensorSpec((Dim("n", 1, 2, 4), 3), torch.float32)])


# -- the graph's edges ----------------------------------------------------------------------------------------------------------------


def test_inputs_constants_and_repeated_values_as_outputs() -> None:
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("table", torch.arange(6.0).reshape(2, 3))
    x, table = graph.placeholder("x"), graph.get_attr("table")
    y = graph.call_function(aten.relu.default, (x,))
    graph.output((x, y, y, table, table))
    check_graph(fx.GraphModule(root, graph), [torch.randn(2, 3)], compile=True)


def test_unused_nodes_and_inputs_cost_nothing() -> None:
    def function(x: fx.Proxy, y: fx.Proxy) -> fx.Proxy:
        aten.exp.default(y)
        return aten.relu.default(x)

    gm = graph_of(function, 2)
    assert check_graph(gm, [torch.randn(3), torch.randn(4)], compile=True).network.num_layers == 1


def test_bfloat16_constants_reach_the_interpreter() -> None:
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("table", torch.randn(40, 3).bfloat16())
    graph.output((graph.call_function(aten.add.Tensor, (graph.placeholder("x"), graph.get_attr("table"))),))
    check_graph(fx.GraphModule(root, graph), [torch.randn(40, 3).bfloat16()], compile=True)


def test_arithmetic_on_sizes_stays_in_the_engine() -> None:
    def function(x: fx.Proxy) -> fx.Proxy:
        rows, columns = aten.sym_size.int(x, 0), aten.sym_size.int(x, -1)
        parts = [
            rows + columns, rows - 7, 3 - rows, rows * columns, columns // 2, rows % 3, -rows, operator.truediv(rows, 4),
            torch.sym_max(rows, columns), torch.sym_min(rows, 3), torch.sym_int(operator.truediv(columns, 2)), torch.sym_float(rows),
        ]  # fmt: skip
        for number in parts:
            x = aten.add.Scalar(aten.mul.Scalar(x, 0.5), number)
        return x

    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    graph.output((function(fx.Proxy(graph.placeholder("x"), tracer)).node,))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    check_graph(gm, [torch.randn(4, 5)], dynamic=[(0, 1)], others=[[torch.randn(1, 10)], [torch.randn(8, 1)]], compile=True)


def test_a_slice_asks_the_engine_for_no_size_of_a_dimension_that_it_leaves_alone() -> None:
    gm = graph_of(lambda x: aten.glu.default(x, 1), 1)
    definition = check_graph(gm, [torch.randn(2, 6, 5)], dynamic=[(0, 2)], others=[[torch.randn(4, 6, 9)]], compile=True)
    assert definition.network.num_layers == 4  # two slices, a sigmoid, a product


# -- progress, cancellation, threads --------------------------------------------------------------------------------------------------


def test_progress_tells_phases_and_seconds() -> None:
    told: list[tuple[str, float]] = []
    _plan(_conv_net(), [_X], progress=lambda phase, seconds: told.append((phase, seconds)))
    assert told[0][0] == "Building engine"
    assert len({phase for phase, _ in told}) > 2
    assert [seconds for _, seconds in told] == sorted(seconds for _, seconds in told)


def test_cancelling_a_build() -> None:
    with pytest.raises(BuildError, match="cancelled"):
        _plan(_conv_net(), [_X], cancel=lambda: True)
    assert _plan(_conv_net(), [_X]).data


def test_ctrl_c_cancels_a_build_and_is_raised_after_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _plan(_conv_net(), [_X], progress=lambda phase, seconds: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_build_and_interpret_at_once() -> None:
    def work(seed: int) -> bytes:
        gm, x = _conv_net(), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        specs.propagate(gm, [_X])
        definition = network_of(gm, [_X])
        assert torch.allclose(interpret(definition, [x])[0], gm(x)[0], atol=1e-5)
        return compile_for(definition, [_X]).data

    expected = work(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(data == expected for data in pool.map(work, range(8)))
