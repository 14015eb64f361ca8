"""A convolution with the work behind it as one cuDNN graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc.backends.cudnn import library
from tiacc.backends.cudnn.body import cudnn_output, has_cudnn_form
from tiacc.backends.cudnn.program import ConvStep, Ref
from tiacc.errors import BuildError

Read = Callable[[Ref], torch.Tensor]

MAX_PLANS = 4
"""The most plans of one graph that are tried: cuDNN lists them best first by its own estimate."""

FEW_PLANS = 2
"""How many are tried beside kernels of our own: building plans is most of the time that tuning takes."""


def can_fuse(step: ConvStep) -> bool:
    """Return whether cuDNN has a node for all that a step does."""
    has_form = has_cudnn_form(step.body) and all(ref.dtype != torch.bool for ref in step.operands)
    return has_form and not step.is_depthwise and not step.is_cropped and step.addend is None


class FusedGraph:
    """The cuDNN graph of a step, and those of its plans that could be built.

    Args:
        step: The convolution.
        weight: Its weight, ``(K, R, S, C/groups)`` in memory.
        read: Gives the tensors of refs.
        device: Where it runs.
    """

    def __init__(self, step: ConvStep, weight: torch.Tensor, read: Read, device: torch.device) -> None:
        cudnn = library.module()
        self._device = device
        handle = library.handle(device, torch.cuda.current_stream(device).cuda_stream)
        io = library.data_type(step.x.dtype)
        graph = cudnn.pygraph(
            handle=handle,
            io_data_type=io,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        self._pack: dict[Any, torch.Tensor] = {}

        def tensor(value: torch.Tensor, dims: list[int], strides: list[int]) -> Any:
            made = graph.tensor(dim=dims, stride=strides, data_type=library.data_type(value.dtype))
            self._pack[made] = value
            return made

        x = read(step.x)
        first = tensor(x, list(x.shape), list(x.stride()))
        shape = step.weight.shape
        taps = tensor(weight, list(shape), [shape[1] * shape[2] * shape[3], 1, shape[3] * shape[1], shape[1]])
        geometry = {"padding": list(step.padding), "stride": list(step.stride), "dilation": list(step.dilation)}
        if step.transposed:
            result = graph.conv_dgrad(loss=first, filter=taps, **geometry)
            result.set_dim(list(step.out.shape))
        else:
            result = graph.conv_fprop(image=first, weight=taps, **geometry)
        operands = []
        for ref in step.operands:
            dims = [1 if not stride else size for size, stride in zip(ref.shape, ref.strides)]
            dense = [dims[1] * dims[2] * dims[3], 1, dims[3] * dims[1], dims[1]]
            operands.append(tensor(read(ref), dims, [have if size > 1 else want for size, have, want in zip(dims, ref.strides, dense)]))
        result = cudnn_output(step.body, graph, [result, *operands])
        out = read(step.out)
        result.set_output(True).set_data_type(library.data_type(out.dtype))
        result.set_dim(list(out.shape)).set_stride(list(out.stride()))
        self._pack[result] = out
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.B])
        if step.x.dtype == torch.float32 and not step.tf32:
            graph.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE, cudnn.numerical_note.DOWN_CONVERT_INPUTS])
        graph.check_support()
        self._graph = graph
        self._sizes: dict[int, int | None] = {}

    def plans(self, limit: int) -> list[int]:
        """Return the indices of the plans to try, at most `limit`."""
        return list(range(min(limit, self._graph.get_execution_plan_count())))

    def build(self, plan: int) -> int:
        """Build a plan, unless it is built, and return the scratch memory that it needs, in bytes.

        Raises:
            BuildError: cuDNN cannot build it.
        """
        if plan not in self._sizes:
            try:
                self._graph.build_plan_at_index(plan)
                self._sizes[plan] = int(self._graph.get_workspace_size_plan_at_index(plan))
            except Exception as error:  # cuDNN's own error type, which is not public
                self._sizes[plan] = None
                raise BuildError(f"cuDNN cannot build plan {plan}: {error}") from error
        size = self._sizes[plan]
        if size is None:
            raise BuildError(f"cuDNN cannot build plan {plan}")
        return size

    def build_all(self, plans: Sequence[int]) -> None:
        """Build some plans, those that can be."""
        for plan in plans:
            with contextlib.suppress(BuildError):
                self.build(plan)

    def run(self, plan: int, workspace: torch.Tensor) -> None:
        """Run a plan on the current stream."""
        handle = library.handle(self._device, torch.cuda.current_stream(self._device).cuda_stream)
        self._graph.execute_plan_at_index(self._pack, workspace, plan, handle=handle)
