"""The pages that say what each backend takes, made from its registry and the tests' tables: ``python -m tests.support_matrix [PAGE ...]``.

Writes the pages of `PAGES` in ``docs``; `tests/test_support_matrix.py` fails where one is out of date.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.backends.tensorrt import cases
from tiacc.backends.cudnn import pointwise, rules, support, views
from tiacc.backends.openvino import bounds, table
from tiacc.backends.tensorrt import converters, flavours
from tiacc.backends.tensorrt.converters import Converter
from tiacc.passes.precision_policy import TABLE

Varying = Callable[[Sequence[cases.Case]], str]

DOCS = Path(__file__).parent.parent / "docs"

_DTYPE_NAMES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip

COLUMNS = ("operator", "tensors", "results", "computed", "sizes that vary", "stays in Torch", "tests")
"""Those of the TensorRT page."""

_TENSORRT = """\
# What TensorRT takes

<!-- Made by `python -m tests.support_matrix` from the registry of converters. Change those instead. -->

The operators that the backends `tensorrt` and `tensorrt_rtx` convert; all others stay in Torch. {count} overloads of `torch.ops.aten`.

* **tensors**: the dtypes that its tensor arguments may have. Nothing computes in float64; a cast of a float64 tensor stays in Torch.
* **results**: the dtypes that its results may have, where these are not the ones that torch's type promotion gives of f32, f16, bf16, i64,
  i32 and bool.
* **computed**: the arguments that may be computed from sizes in the engine; all others must be known when it is built.
* **sizes that vary**: how many of its tests' calls are accepted with all dimensions varying, but those of size 1 and those that torch
  fixes, such as the channels of constant weights: all, some, or none.
* **stays in Torch**: what a call must not be, beside the above.
* **tests**: the test modules with calls of it, each converted, interpreted and compared with eager torch, and how many where they stand
  in a table. `test_op_samples.py` adds torch's own samples of each operator.

Every tensor has at most 8 dimensions.

## Libraries

What not every library and version has. Where a layer is missing, the converter writes it in others; no operator is lost.

| capability | TensorRT | TensorRT-RTX |
|---|---|---|
{flavours}

Built for `sm75` (Turing) there are no float32 matrix products and no bfloat16; a segment that has them is left to Torch, with that reason.
"""

_OPENVINO = """\
# What OpenVINO takes

<!-- Made by `python -m tests.support_matrix` from the table of rules. Change that instead. -->

The operators that the backend `openvino` converts; all others stay in Torch. {count} overloads of `torch.ops.aten`.

* **tensors**: the dtypes that its tensor arguments may have.
* **results**: the dtypes that its results may have, where these are others.
* **computed**: the arguments that may be computed from sizes at run time; all others must be known when the engine is built.
* **integers below**: the magnitude below which integers come out right. A call whose integers may be larger stays in Torch.
* **only if**: what else must hold.

`tests/backends/test_openvino_operators.py` holds every line to torch's own samples of the operator: none wrong, none that cannot be built.
"""


_CUDNN = """\
# What cuDNN takes

<!-- Made by `python -m tests.support_matrix` from the tables of the backend. Change those instead. -->

How the backend `cudnn` runs each operator of `torch.ops.aten`. What is fused costs no memory traffic of its own. What there is no kernel
for, torch computes, recorded in the same CUDA graph. Operators of the last list, and those that are in none, stay in Torch.

Tensors: {dtypes}. Sizes may vary: a program is planned for each set of sizes that comes.
"""


def tensorrt_page(varying: Varying | None = None) -> str:
    """Return the page of the TensorRT backends.

    Args:
        varying: What says of calls whether they are accepted with sizes that vary, which takes a minute for all; `how_many_vary`
            when None.
    """
    varying = varying or how_many_vary
    registry = converters.all_converters()
    tested = _cases_by_operator()
    areas: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for overload, converter in sorted(registry.items(), key=lambda item: str(item[0])):
        found = tested.get(overload, [])
        counts = Counter(module for module, _ in found)
        others = [module for module in cases.modules() if re.search(rf"aten\.{re.escape(_short(overload))}\b", _source(module))]
        areas[converter.convert.__module__].append(
            (
                f"`{_short(overload)}`",
                _dtypes(converter.dtypes),
                "" if converter.results == converters.ALL else _dtypes(converter.results),
                _names(converter.symbolic),
                varying([case for _, case in found]),
                "; ".join((*_needs(converter), *dict.fromkeys(_reasons(converter.check, _short(overload))))),
                ", ".join([*(f"{module} ({count})" for module, count in counts.items()), *(module for module in others if not counts)]),
            )
        )
    lines = [_TENSORRT.format(count=len(registry), flavours="\n".join(_flavour_rows()))]
    for name in sorted(areas):
        lines.append(f"## {_title(name)}\n")
        lines += _rows(COLUMNS, areas[name])
    return "\n".join(lines)


def openvino_page() -> str:
    """Return the page of the OpenVINO backend."""
    areas: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for rule in table.RULES:
        limit = "" if rule.limit == bounds.EXACT else f"2^{rule.limit.bit_length() - 1}"
        for name in rule.names:
            results = "" if rule.result_dtypes == rule.dtypes else _dtypes(rule.result_dtypes)
            note = " ".join(rule.note.split("\n\n")[0].split())
            areas[rule.area].append((f"`{name}`", _dtypes(rule.dtypes), results, _names(rule.computed), limit, note))
    lines = [_OPENVINO.format(count=len(table.TABLE))]
    for area, rows in areas.items():
        lines.append(f"## {area[0].upper()}{area[1:]}\n")
        lines += _rows(("operator", "tensors", "results", "computed", "integers below", "only if"), rows)
    return "\n".join(lines)


def cudnn_page() -> str:
    """Return the page of the cuDNN backend."""
    own = {_short(overload) for overload in rules.RULES}
    fused = {_short(overload) for overload in pointwise.RULES}
    kernels = own | fused | {_short(overload) for overload in (*views.VIEWS, *views.CASTS)}
    recorded = {name for name in {*TABLE, *support.MORE} - support.WAITING if not any(item.startswith(f"{name}.") for item in kernels)}
    parts = {
        "Kernels of its own": ("a cuDNN graph or a Triton kernel, with what stands before and behind it fused into it", own),
        "Fused": ("element by element: part of the kernel before or behind it, or one kernel for a whole chain", fused),
        "Views": ("no kernel and no memory; a copy only where the strides ask for one", {_short(item) for item in views.VIEWS}),
        "Casts": ("fused as the above", {_short(item) for item in views.CASTS}),
        "Computed by torch in the same graph": ("recorded once and replayed; all overloads", recorded),
        "Left in Torch": ("they wait for the GPU, which a CUDA graph cannot; all overloads", support.WAITING),
    }
    lines = [_CUDNN.format(dtypes=_dtypes(support.DTYPES))]
    for title, (how, names) in parts.items():
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        lines += [f"## {title}\n", f"{how[0].upper()}{how[1:]}. {len(names)} of them.\n", listed, ""]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "tensorrt-support.md": tensorrt_page,
    "openvino-support.md": openvino_page,
    "cudnn-support.md": cudnn_page,
}
"""What makes each page, by its file name."""


def main(names: Sequence[str]) -> int:
    """Write the pages of these names; all without any."""
    for name in names or PAGES:
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


# -- tables -----------------------------------------------------------------------------------------------------------------------


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _dtypes(dtypes: Collection[torch.dtype]) -> str:
    return " ".join(name for dtype, name in _DTYPE_NAMES.items() if dtype in dtypes)


def _names(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _short(overload: Any) -> str:
    return str(overload).removeprefix("aten.")


def _title(module: str) -> str:
    """Return what a module of converters is about: the beginning of its docstring, up to the first mark."""
    first = (sys.modules[module].__doc__ or module).strip().split("\n")[0]
    return first.split(":")[0].split(". ")[0].rstrip(".")


def _flavour_rows() -> Iterator[str]:
    for name, capability in flavours.CAPABILITIES.items():
        since = [capability.since.get(library) for library in ("tensorrt", "tensorrt_rtx")]
        yield f"| `{name}` | {' | '.join('no' if item is None else '.'.join(map(str, item)) for item in since)} |"


def _needs(converter: Converter) -> Iterator[str]:
    if converter.needs:
        yield f"a library without `{converter.needs}`"


# -- what the tests show ----------------------------------------------------------------------------------------------------------


def _cases_by_operator() -> dict[Any, list[tuple[str, cases.Case]]]:
    """Return the calls of each operator in the tests, each with its module's name."""
    found: dict[Any, list[tuple[str, cases.Case]]] = defaultdict(list)
    for module in cases.modules():
        for case in getattr(importlib.import_module(f"tests.backends.tensorrt.{module}"), "CASES", ()):
            found[case.op].append((module, case))
    return found


@cache
def _source(module: str) -> str:
    return Path(cases.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")


def how_many_vary(calls: Sequence[cases.Case]) -> str:
    """Return of how many of some calls the sizes may vary, apart from those whose sizes torch fixes: "all", "some", "none"."""
    graphs = [varying[0] for varying in (case.varying() for case in calls) if varying is not None]
    accepted = [all(converters.supports(node) for node in gm.graph.nodes if node.op == "call_function") for gm in graphs]
    return "none" if not accepted else "all" if all(accepted) else "some" if any(accepted) else "none"


# -- what a check refuses ---------------------------------------------------------------------------------------------------------


def _reasons(function: Any, operator: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the reasons that a function gives in ``Support(False, ...)``, and those of the functions of the backend that it calls."""
    function = inspect.unwrap(function) if callable(function) else None
    if not inspect.isfunction(function) or not function.__module__.startswith(converters.__name__.rpartition(".")[0]):
        return
    names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "Support" and len(node.args) == 2:
            yield _text(node.args[1], {**names, "operator": operator})
        elif node.func.id not in seen and node.func.id != function.__name__:
            yield from _reasons(names.get(node.func.id), operator, seen | {function.__name__})


def _text(node: ast.expr, names: dict[str, Any]) -> str:
    """Return a reason as text; what depends on the call is in italics."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part.value if isinstance(part, ast.FormattedValue) else part, names) for part in node.values)
    source = ast.unparse(node)
    if source.endswith("node.target"):
        return f"`{names['operator']}`"
    if isinstance(node, ast.Name) and isinstance(names.get(source), (int, str)):
        return str(names[source])
    words = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id not in (*dir(builtins), "view")]
    return f"*{words[0]}*" if words else f"*{source.rpartition('.')[2]}*"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
