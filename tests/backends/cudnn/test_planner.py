from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.backends.cudnn.programs import aten, block, error, planned, run
from tests.helpers import Sketch, random_inputs
from tiacc.backends.cudnn import memory_plan
from tiacc.backends.cudnn.naming import signature, title
from tiacc.backends.cudnn.program import ConvStep, PointwiseStep, RowStep, TorchStep
from tiacc.backends.reference import run_graph


def titles(gm) -> list[str]:
    return [title(step) for step in planned(gm).steps]


def check(gm, tolerance: float = 1e-6) -> None:
    """A program computes what its graph does, in memory that is full of NaN when it begins."""
    inputs = random_inputs(gm)
    for got, wanted in zip(run(planned(gm), inputs), run_graph(gm, inputs), strict=True):
        assert error(got, wanted) < tolerance


def test_element_wise_work_joins_the_convolution_before_it() -> None:
    gm = block()
    assert titles(gm) == ["conv3x3+add+relu", "conv3x3+add+relu"]
    check(gm)


def test_a_value_that_two_read_is_stored() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 8, 5, 5)
    weight = sketch.constant("weight", torch.randn(8, 8, 1, 1))
    y = sketch.call(aten.conv2d.default, x, weight)
    gm = sketch.output(sketch.call(aten.relu.default, y), sketch.call(aten.sigmoid.default, y))
    assert titles(gm) == ["conv1x1", "relu", "sigmoid"]
    check(gm)


def test_of_two_convolutions_that_are_added_one_takes_the_other() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 8, 5, 5)
    first, second = (sketch.constant(f"w{i}", torch.randn(4, 8, 3, 3)) for i in (1, 2))
    total = sketch.call(aten.add.Tensor, sketch.call(aten.conv2d.default, x, first), sketch.call(aten.conv2d.default, x, second))
    gm = sketch.output(total)
    assert titles(gm) == ["conv3x3", "conv3x3+add"]
    check(gm)


def test_images_are_channels_last_and_are_never_copied_between_steps() -> None:
    program = planned(block())
    for step in program.steps:
        assert isinstance(step, ConvStep)
        assert step.x.strides[1] == step.out.strides[1] == 1


def test_a_linear_layer_is_a_product_with_the_work_behind_it() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 5, 12)
    weight, bias = sketch.constant("weight", torch.randn(6, 12)), sketch.constant("bias", torch.randn(6))
    y = sketch.call(aten.gelu.default, sketch.call(aten.linear.default, x, weight, bias))
    gm = sketch.output(y)
    assert titles(gm) == ["conv1x1+add+gelu"]
    check(gm)


def test_parts_of_a_join_are_stored_in_their_places() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 8, 6, 6)
    weight = sketch.constant("weight", torch.randn(8, 8, 3, 3))
    left = sketch.call(aten.relu.default, sketch.call(aten.conv2d.default, x, weight, None, [1, 1], [1, 1]))
    right = sketch.call(aten.avg_pool2d.default, x, [3, 3], [1, 1], [1, 1])
    gm = sketch.output(sketch.call(aten.cat.default, [left, right], 1))
    program = planned(gm)
    assert [title(step) for step in program.steps] == ["conv3x3+relu", "avgpool3x3"]
    assert len({step.out.buffer for step in program.steps}) == 1
    check(gm)


def test_views_cost_nothing() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 6, 8)
    y = sketch.call(aten.transpose.int, sketch.call(aten.view.default, x, [2, 6, 2, 4]), 1, 2)
    gm = sketch.output(sketch.call(aten.mul.Tensor, y, 2.0))
    assert titles(gm) == ["mul"]
    check(gm)


def test_a_view_that_the_layout_does_not_admit_is_a_copy() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 6, 4, 5)
    gm = sketch.output(sketch.call(aten.relu.default, sketch.call(aten.flatten.using_ints, x, 1)))
    assert titles(gm) == ["copy", "relu"]
    check(gm)


def test_a_sum_of_few_slices_is_arithmetic() -> None:
    sketch = Sketch()
    x, weights = sketch.input("x", 2, 2, 3, 4, 4), sketch.input("weights", 2, 2, 3, 1, 1)
    gm = sketch.output(sketch.call(aten.sum.dim_IntList, sketch.call(aten.mul.Tensor, x, weights), [1]))
    assert titles(gm) == ["mul+mul+add"]
    check(gm)


def test_normalisations_of_rows_take_the_work_on_both_sides() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 3, 4, 10), sketch.input("y", 3, 4, 10)
    weight, bias = sketch.constant("weight", torch.randn(10)), sketch.constant("bias", torch.randn(10))
    norm = sketch.call(aten.layer_norm.default, sketch.call(aten.add.Tensor, x, y), [10], weight, bias)
    gm = sketch.output(sketch.call(aten.relu.default, norm))
    (step,) = planned(gm).steps
    assert isinstance(step, RowStep) and title(step) == "add+layer_norm+mul+add+relu"
    check(gm, 1e-5)


def test_a_layer_whose_result_is_turned_still_takes_the_work_behind_it() -> None:
    sketch = Sketch()
    x, shortcut = sketch.input("x", 2, 35, 12), sketch.input("shortcut", 2, 8, 5, 7)
    weight, scale = sketch.constant("weight", torch.randn(8, 12)), sketch.constant("scale", torch.randn(8, 1, 1))
    pixels = sketch.call(aten.view.default, x, [2, 5, 7, 12])
    y = sketch.call(aten.permute.default, sketch.call(aten.linear.default, pixels, weight), [0, 3, 1, 2])
    gm = sketch.output(sketch.call(aten.add.Tensor, sketch.call(aten.mul.Tensor, y, scale), shortcut))
    assert titles(gm) == ["conv1x1+mul+add"]
    check(gm)


def test_rows_of_a_turned_input_are_taken_in_the_order_of_memory() -> None:
    sketch = Sketch()
    x, shortcut = sketch.input("x", 2, 5, 12), sketch.input("shortcut", 2, 5, 12)
    weight = sketch.constant("weight", torch.randn(12, 12))
    turned = sketch.call(aten.transpose.int, x, 0, 1)
    y = sketch.call(aten.transpose.int, sketch.call(aten.linear.default, turned, weight), 0, 1)
    gm = sketch.output(sketch.call(aten.add.Tensor, y, shortcut))
    assert titles(gm) == ["conv1x1+add"]
    check(gm)


def test_work_behind_a_reshaped_result_joins_the_layer() -> None:
    sketch = Sketch()
    x = sketch.input("x", 6, 12)
    y = sketch.call(aten.view.default, sketch.call(aten.linear.default, x, sketch.constant("weight", torch.randn(8, 12))), [2, 3, 2, 4])
    gm = sketch.output(sketch.call(aten.relu.default, y))
    assert titles(gm) == ["conv1x1+relu"]
    check(gm)


def test_what_has_no_plan_is_a_call_of_torch() -> None:
    sketch = Sketch()
    x = sketch.input("x", 4, 10)
    gm = sketch.output(sketch.call(aten.relu.default, sketch.call(aten.cumsum.default, x, 1)))
    program = planned(gm)
    assert [type(step) for step in program.steps] == [TorchStep, PointwiseStep]
    check(gm)


def test_an_input_that_is_only_converted_is_converted_by_the_copy_in() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 8, 4, 4)
    half = sketch.call(aten.to.dtype, x, torch.float16)
    y = sketch.call(aten.conv2d.default, half, sketch.constant("weight", torch.randn(8, 8, 1, 1).half()))
    gm = sketch.output(sketch.call(aten.to.dtype, y, torch.float32))
    program = planned(gm)
    assert [title(step) for step in program.steps] == ["conv1x1"]
    assert program.inputs[0] is not None and program.inputs[0].ref.dtype == torch.float16
    check(gm, 1e-3)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 2, 3), (3, 2, 1), (4, 4, 0), (3, 2, 0), (5, 4, 2), (2, 2, 1)])
def test_the_first_layer_reads_a_folded_image(kernel: int, stride: int, padding: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 16, 24)
    weight = sketch.constant("weight", torch.randn(8, 3, kernel, kernel))
    gm = sketch.output(sketch.call(aten.relu.default, sketch.call(aten.conv2d.default, x, weight, None, [stride] * 2, [padding] * 2)))
    program = planned(gm)
    (step,) = program.steps
    assert isinstance(step, ConvStep) and step.stride == (1, 1) and step.x.shape[2:] == (16 // stride, 24 // stride)
    assert program.inputs[0] is not None and program.inputs[0].fold == stride
    check(gm)


def test_an_image_that_others_read_is_not_folded() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 8, 8)
    weight = sketch.constant("weight", torch.randn(3, 3, 3, 3))
    y = sketch.call(aten.conv2d.default, x, weight, None, [2, 2], [1, 1])
    gm = sketch.output(y, sketch.call(aten.relu.default, x))
    assert planned(gm).inputs[0].fold == 1
    check(gm)


def test_signatures_do_not_name_buffers() -> None:
    first, second = planned(block()), planned(copy.deepcopy(block()))
    assert [signature(step) for step in first.steps] == [signature(step) for step in second.steps]
    assert signature(first.steps[0]) != signature(first.steps[1])


def test_buffers_share_memory_only_when_one_is_done() -> None:
    program = planned(block())
    spans, plan = memory_plan.lifetimes(program), memory_plan.assign(program)
    for one in spans:
        for other in spans:
            if one is other or spans[one][1] < spans[other][0] or spans[other][1] < spans[one][0]:
                continue
            begin, end = plan.offsets[one], plan.offsets[other]
            assert begin + one.size_bytes <= end or end + other.size_bytes <= begin
    assert plan.size_bytes <= plan.total_bytes + 256 * len(spans)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(24, 72), nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 4, 6)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * 6**-0.5
        weights = scores.masked_fill(mask[:, None, None, :] < 0, float("-inf")).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("level", [0, 1])
def test_attention_with_a_mask(level: int) -> None:
    from tests.backends.cudnn.models import subgraph

    torch.manual_seed(0)
    inputs = (torch.randn(2, 7, 24), torch.randn(2, 7))
    inputs[1][:, 0] = 1.0
    model = _Attention().eval()
    gm = subgraph(model, inputs, level)
    (got,) = run(planned(gm), inputs)
    with torch.no_grad():
        assert error(got, model(*inputs)) < (1e-6, 2e-3)[level]
