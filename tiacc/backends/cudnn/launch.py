"""Tactics: the ways to run a step, and how each is turned into a call.

A tactic has a name, by which caches and engines keep it: ``"torch"``; ``"cudnn:3"``, the fourth plan of a fused graph;
``"triton:128,64,64,4,3"``, a kernel with the sizes of its tiles, its warps and its pipeline stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from tiacc.backends.cudnn import attention, depthwise, eager, kernels, products, tiles
from tiacc.backends.cudnn.binaries import Binaries
from tiacc.backends.cudnn.fused import FEW_PLANS, MAX_PLANS, FusedGraph, can_fuse
from tiacc.backends.cudnn.layouts import is_rows, row_of
from tiacc.backends.cudnn.program import AttentionStep, ConvStep, PointwiseStep, PoolStep, ReduceStep, Ref, RowStep, Step, TorchStep
from tiacc.backends.cudnn.triton_call import WORKERS, TritonCall
from tiacc.errors import BuildError

Call = Callable[[], None]
TORCH = "torch"

COUNTERS = 4096
"""The counters of split sums; each is 0 whenever no kernel runs."""


class Bench:
    """Where steps are bound to memory: the tensors of refs, packed weights, scratch memory.

    Args:
        read: Gives the tensor of a ref.
        packed: Weights in the layouts of kernels, kept between programs of one engine.
        device: Where the steps run.
        binaries: The kernels of the engine; None where Triton launches them.

    Attributes:
        kernels: The launches of kernels of ours that steps were bound to; `forget` drops them.
    """

    def __init__(
        self,
        read: Callable[[Ref], torch.Tensor],
        packed: dict[tuple[str, str], torch.Tensor],
        device: torch.device,
        binaries: Binaries | None = None,
    ) -> None:
        self.read = read
        self.device = device
        self.kernels: list[TritonCall] = []
        self._binaries = binaries
        self._packed = packed
        self._graphs: dict[int, tuple[Step, FusedGraph | None]] = {}
        self._workspaces = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(2)]
        self._partial = torch.empty(0, device=device)
        self._counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)

    def tactics(self, step: Step) -> list[str]:
        """Return the tactics of a step, the safest guess first."""
        if isinstance(step, TorchStep):
            return [TORCH]
        if isinstance(step, PointwiseStep):
            return [_element_tactic(step.out.numel)]
        if isinstance(step, PoolStep):
            return [f"triton:{block},4" for block in (128, 256, 512)] if step.out.numel > 2**14 else ["triton:128,4", "triton:64,2"]
        if isinstance(step, RowStep):
            return _row_tactics(step)
        if isinstance(step, ReduceStep):
            return _reduce_tactics(step)
        if isinstance(step, AttentionStep):
            return [TORCH, *attention.tactics(step)]
        if step.is_depthwise:
            return [*depthwise.tactics(step), TORCH]
        graph = self.graph(step)
        shapes = tiles.candidates(step) if products.has_product(step) else []
        found = [f"cudnn:{plan}" for plan in graph.plans(FEW_PLANS if shapes else MAX_PLANS)] if graph is not None else []
        if not found or step.is_point or step.transposed:
            found.append(TORCH)
        return found + [f"triton:{tile}" for tile in shapes]

    def bind(self, step: Step, tactic: str) -> Call:
        """Return a call that runs a step on the current stream.

        Raises:
            BuildError: The tactic does not do for this step on this machine.
        """
        kind, _, text = tactic.partition(":")
        try:
            if kind == TORCH:
                return self._bind_torch(step)
            numbers = [int(item) for item in text.split(",")]
            if kind == "cudnn" and isinstance(step, ConvStep):
                return self._bind_cudnn(step, numbers[0])
            if kind == "triton":
                return self._bind_triton(step, numbers)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise BuildError(f"the tactic {tactic} failed: {error}") from error
        raise BuildError(f"there is no tactic {tactic!r}; delete the tactic cache, or optimize the model again")

    def fenced(self, call: Call) -> Call:
        """Return a call that begins when all before it is done, which `racing` says the need of: memory is cleared between the two."""
        mark = self._counters[:1]  # cleared already

        def run() -> None:
            mark.zero_()
            call()

        return run

    def graph(self, step: ConvStep) -> FusedGraph | None:
        """Return the cuDNN graph of a step; None where it has none."""
        known = self._graphs.get(id(step))
        if known is not None:
            return known[1]
        graph = None
        if self.device.type == "cuda" and can_fuse(step):
            try:
                graph = FusedGraph(step, self.weight(step), self.read, self.device)
            except Exception:  # noqa: BLE001 - cuDNN's own error type, which is not public; other tactics are left
                graph = None
        self._graphs[id(step)] = (step, graph)
        return graph

    def weight(self, step: ConvStep) -> torch.Tensor:
        """Return the weight of a convolution as its kernels read it: ``(K, R, S, C)``, or ``(R, S, K)`` of a depthwise one."""
        if step.is_depthwise:
            return self._pack(step, "depthwise", lambda weight: weight.permute(2, 3, 0, 1).contiguous())
        return self._pack(step, "taps", lambda weight: weight.permute(0, 2, 3, 1).contiguous())

    def _product_weight(self, step: ConvStep) -> torch.Tensor:
        if step.addend is not None:
            other = self.read(step.addend.weight).flatten(1)
            return self._pack(step, "beside " + step.addend.weight.buffer.name, lambda weight: torch.cat([weight.flatten(1), other], 1))
        if not step.transposed:
            return self.weight(step)
        return self._pack(step, "parity", lambda weight: products.parity_weight(weight, step.stride, step.padding))

    def _pack(self, step: ConvStep, layout: str, pack: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        key = (step.weight.buffer.name, f"{layout} in TensorFloat-32" if step.is_rounded else layout)
        if key not in self._packed:
            packed = pack(self.read(step.weight))
            self._packed[key] = products.rounded(packed) if step.is_rounded else packed
        return self._packed[key]

    def forget(self) -> None:
        """Drop what no call uses."""
        self._graphs.clear()
        self.kernels = []

    # -- kinds of tactics ------------------------------------------------------------------------------------------------------------

    def _bind_torch(self, step: Step) -> Call:
        if not isinstance(step, ConvStep) or not step.body.instructions or (step.x.dtype == torch.float32 and self.device.type == "cpu"):
            return lambda: eager.compute(step, self.read)
        # the product by torch, into its place, then one kernel for the work behind it
        if step.out.dtype != step.x.dtype or step.addend is not None:
            return lambda: eager.compute(step, self.read)
        x, out = self.read(step.x), self.read(step.out)
        weight = self.weight(step) if not step.is_depthwise else None
        shaped = weight.permute(0, 3, 1, 2) if weight is not None else self.read(step.weight)
        rest = PointwiseStep(step.out, (step.out, *step.operands), step.body)
        finish = self.bind(rest, _element_tactic(step.out.numel))
        if step.is_point and is_rows(step.x) and is_rows(step.out):
            rows = (step.out.shape[0] * step.out.shape[2] * step.out.shape[3], step.out.shape[1])
            matrix = x.as_strided((rows[0], x.shape[1]), (row_of(step.x), 1), x.storage_offset())
            place = out.as_strided(rows, (row_of(step.out), 1), out.storage_offset())
            flat = shaped.reshape(shaped.shape[0], shaped.shape[1]).t()

            def multiply() -> None:
                torch.mm(matrix, flat, out=place)
                finish()

            return multiply

        def convolve() -> None:
            out.copy_(eager.convolution(step, x, shaped))
            finish()

        return convolve

    def _bind_cudnn(self, step: ConvStep, plan: int) -> Call:
        graph = self.graph(step)
        if graph is None:
            raise BuildError("cuDNN has no graph for this step")
        size = graph.build(plan)
        self._workspaces.reverse()  # a kernel of cuDNN may begin while the one before it ends: neighbours do not share scratch memory
        if size > self._workspaces[0].numel():
            self._workspaces[0] = torch.empty(size, dtype=torch.uint8, device=self.device)
        workspace = self._workspaces[0]
        return lambda: graph.run(plan, workspace)

    def _bind_triton(self, step: Step, numbers: list[int]) -> Call:
        if isinstance(step, PointwiseStep):
            return self._element_wise(kernels.pointwise(step), step.out, step.operands, numbers)
        if isinstance(step, PoolStep):
            return self._element_wise(kernels.pool(step), step.out, (step.x, *step.operands), numbers)
        if isinstance(step, (ReduceStep, RowStep)):
            text = kernels.reduction(step) if isinstance(step, ReduceStep) else kernels.row(step)
            rows, columns, warps = numbers
            count = math.prod(step.inputs[0].shape) // math.prod(step.inputs[0].shape[dim] for dim in step.dims)
            tensors = self._storages((step.out, *step.inputs, *step.operands))
            return self._noted(TritonCall(text, (-(-count // rows),), tensors, {"XB": rows, "RB": columns}, warps, 2, (), self._binaries))
        if isinstance(step, AttentionStep):
            rows, keys, warps, stages = numbers
            grid = (-(-step.out.shape[2] // rows), step.out.shape[0] * step.out.shape[1])
            tensors = self._storages(step.refs())
            constants = {"BM": rows, "BN": keys}
            return self._noted(TritonCall(attention.kernel(step), grid, tensors, constants, warps, stages, (), self._binaries))
        if isinstance(step, ConvStep) and step.is_depthwise:
            pixels, wide, warps = numbers
            images, channels, height, width = step.out.shape
            tensors = [*self._storages((step.out, step.x)), self.weight(step), *self._storages(step.operands)]
            grid = (images * height * -(-width // pixels), -(-channels // wide))
            constants = {"BW": pixels, "BC": wide}
            return self._noted(TritonCall(depthwise.kernel(step), grid, tensors, constants, warps, 2, (), self._binaries))
        if isinstance(step, ConvStep):
            return self._product(step, tiles.Tile.parse(numbers))
        raise BuildError("this step has no kernel")

    def _product(self, step: ConvStep, tile: tiles.Tile) -> Call:
        text, sizes = products.product(step, tile)
        others = step.operands if step.addend is None else (step.addend.x, *step.operands)
        tensors = [*self._storages((step.out, step.x)), self._product_weight(step), *self._storages(others)]
        if tile.split > 1:
            numbers, counters = tiles.scratch_of(step, tile)
            if numbers > self._partial.numel():
                self._partial = torch.empty(numbers, dtype=torch.float32, device=self.device)
            if counters > self._counters.numel():
                raise BuildError("the sum has too many tiles to be split")
            tensors += [self._partial, self._counters]
        constants = {"BM": tile.high, "BN": tile.wide, "BK": tile.deep}
        grid = tiles.grid_of(step, tile)
        ahead = products.asked_ahead(step) if math.prod(grid) <= tiles.FEW_PROGRAMS else ()
        return self._noted(TritonCall(text, grid, [*tensors, *sizes], constants, tile.warps, tile.stages, ahead, self._binaries))

    def _element_wise(self, text: str, out: Ref, others: tuple[Ref, ...], numbers: list[int]) -> Call:
        block, warps = numbers
        tensors = self._storages((out, *others))
        return self._noted(TritonCall(text, (-(-out.numel // block),), tensors, {"BLOCK": block}, warps, 2, (), self._binaries))

    def _noted(self, call: TritonCall) -> TritonCall:
        self.kernels.append(call)
        return call

    def _storages(self, refs: tuple[Ref, ...]) -> list[torch.Tensor]:
        """Return the tensors of whole buffers: kernels add the offsets of refs themselves."""
        return [self.read(Ref(ref.buffer, (max(ref.buffer.numel, 1),), (1,))) for ref in refs]


def build_ahead(graphs: Sequence[tuple[FusedGraph, Sequence[int]]]) -> None:
    """Build plans of cuDNN graphs, several graphs at a time; those that cannot be built are left out."""
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda item: item[0].build_all(item[1]), graphs))


def _element_tactic(count: int) -> str:
    return "triton:1024,4" if count >= 2**19 else "triton:512,4" if count >= 2**16 else "triton:128,4"


def _power(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _row_tactics(step: RowStep) -> list[str]:
    columns = _power(math.prod(step.out.shape[dim] for dim in step.dims))
    rows = max(1, 1024 // columns)
    found = [f"triton:{rows},{columns},{4 if rows * columns <= 4096 else 8}"]
    if rows > 1:
        found.append(f"triton:{max(1, rows // 4)},{columns},{2 if columns <= 512 else 4}")
    return found


def _reduce_tactics(step: ReduceStep) -> list[str]:
    """Long rows are read in blocks; where neighbours in memory are different rows, blocks are tall."""
    shape = step.inputs[0].shape
    columns = math.prod(shape[dim] for dim in step.dims)
    strides = step.inputs[0].strides
    is_inner = any(strides[dim] == 1 and shape[dim] > 1 for dim in step.dims)
    if is_inner:
        wide = min(_power(columns), 2048)
        return list(dict.fromkeys((f"triton:{max(1, 1024 // wide)},{wide},4", f"triton:1,{wide},4")))
    return list(
        dict.fromkeys(
            f"triton:{rows},{min(_power(columns), deep)},{warps}"
            for rows, deep, warps in ((16, 128, 4), (32, 64, 4), (8, 512, 8), (64, 32, 4), (8, 128, 4), (16, 512, 8))
        )
    )
