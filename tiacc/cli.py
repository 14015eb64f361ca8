"""The command line: ``tiacc optimize | explain | report | bisect | inspect | passes | backends``.

The result goes to stdout, all else to stderr. Exit codes: 0 done, 1 refused with an error of tiacc's, 2 wrong usage, 3 an
error that tiacc did not foresee, 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tiacc.errors import InvalidArgumentError, TiaccError
from tiacc.options import Options
from tiacc.report_view import Section, render
from tiacc.shapes import GRAMMAR

DONE, REFUSED, USAGE, UNFORESEEN, INTERRUPTED = 0, 1, 2, 3, 130

_EXAMPLES = """\
examples:
  tiacc optimize model.pt --device cpu --level 1 --shape '1*3*224*224' --save fast.pt --report report.json
  tiacc optimize bert.pt --shape '{"range,long": ["1*16", "8*512"]}' --shape '{"range,long": ["1*16", "8*512"]}' --save fast.pt
  tiacc explain model.pt --shape '1*3*224*224'
  tiacc inspect fast.pt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the name of the program; None for ``sys.argv``.

    Returns:
        The exit code.
    """
    parsed = _parser().parse_args(arguments)
    try:
        text = parsed.command(parsed)
        if text:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough; nothing more can be written there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        sys.stderr.write("tiacc: interrupted\n")
        return INTERRUPTED
    except Exception as error:  # the edge of the program: every error becomes one line and an exit code
        if parsed.traceback:
            raise
        return _complain(error)
    return DONE


def _complain(error: Exception) -> int:
    message = " ".join(str(error).removesuffix(GRAMMAR).split())
    if isinstance(error, TiaccError):
        sys.stderr.write(f"tiacc: error: {message}\n")
        return REFUSED
    sys.stderr.write(f"tiacc: unforeseen error, please report it with --traceback: {type(error).__name__}: {message}\n")
    return UNFORESEEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tiacc",
        description="Make TorchScript models faster.",
        epilog=f"{_EXAMPLES}\nA --shape is an entry of input_shapes, as JSON or as Python. {GRAMMAR}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tiacc {metadata.version('tiacc')}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    optimize = _command(commands, _optimize, "optimize", "optimize a TorchScript file and print the report")
    _add_model(optimize)
    optimize.add_argument("--data", type=Path, metavar="FILE", help="test data: a list of tuples of tensors, by torch.save")
    optimize.add_argument("--save", metavar="FILE", help="where to save the optimized model, .pt or .pth")
    optimize.add_argument("--report", type=Path, metavar="FILE", help="where to save the report as JSON")
    optimize.add_argument("--html", type=Path, metavar="FILE", help="where to save the report as a page to look at")
    optimize.add_argument("--quiet", action="store_true", help="show no progress and print no report")
    _add_json(optimize)

    explain = _command(commands, _explain, "explain", "say what would be optimized and what not, and why; build nothing")
    _add_model(explain)
    _add_json(explain)

    report = _command(commands, _report, "report", "print a report that was saved as JSON, or make a page of it")
    report.add_argument("file", type=Path, metavar="FILE")
    report.add_argument("--html", type=Path, metavar="FILE", help="where to save it as a page to look at")

    bisect = _command(commands, _bisect, "bisect", "find the rewrite or the operators that make an optimized model wrong")
    _add_model(bisect)
    bisect.add_argument("--data", type=Path, metavar="FILE", help="test data: a list of tuples of tensors, by torch.save")
    bisect.add_argument("--output", metavar="DIR", help="where to write a reproduction that runs by itself")

    inspect_ = _command(commands, _inspect, "inspect", "say what is in a saved model: engines, shapes, sizes")
    inspect_.add_argument("model", metavar="FILE")
    _add_json(inspect_)
    _add_json(_command(commands, _passes, "passes", "list the passes with their options"))
    _add_json(_command(commands, _backends, "backends", "list the backends, and whether they can be used here"))
    return parser


def _command(commands: Any, function: Callable[[argparse.Namespace], str], name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error came from")
    parser.set_defaults(command=function)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a TorchScript file, .pt or .pth")
    parser.add_argument("--shape", action="append", dest="shapes", metavar="SHAPE", help="an input, in order; see tiacc --help")
    parser.add_argument("--level", type=int, default=0, help="0: lossless, 1: half precision (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one (default: %(default)s)")
    parser.add_argument("--backend", help="the backends to use, by priority, joined with commas (default: auto)")
    parser.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        dest="options",
        metavar="NAME=VALUE",
        help="any other field of tiacc.Options",
    )
    debugging = parser.add_argument_group("watching the passes")
    debugging.add_argument("--dump", type=Path, metavar="DIR", help="write the graph as text and as a page, first and after each change")
    debugging.add_argument("--verify-each", action="store_true", help="check the graph's form and numbers after each pass that changed it")
    debugging.add_argument("--stop-after", metavar="NAME", help="run no pass behind this one")
    debugging.add_argument("--fuel", type=int, metavar="N", help="let the passes make N rewrites, to bisect which one breaks a model")


def _bisect(arguments: argparse.Namespace) -> str:
    from tiacc import debug

    found = debug.bisect(
        arguments.model,
        _shapes(arguments.shapes),
        optimization_level=arguments.level,
        device_type=_device(arguments.device),
        test_data=None if arguments.data is None else _load_data(arguments.data),
        directory=arguments.output,
        **_option_fields(arguments),
    )
    return str(found)


def _optimize(arguments: argparse.Namespace) -> str:
    import tiacc

    for path in (arguments.report, arguments.html):
        if path is not None:
            _check_writable(path)
    fields = _option_fields(arguments)
    if arguments.quiet:
        fields["verbose"] = False
    _, report = tiacc.optimize(
        arguments.model,
        arguments.level,
        _device(arguments.device),
        _shapes(arguments.shapes),
        test_data=None if arguments.data is None else _load_data(arguments.data),
        save_path=arguments.save,
        **fields,
    )
    if arguments.report is not None:
        report.save_json(arguments.report)
    if arguments.html is not None:
        report.save_html(arguments.html)
    if arguments.quiet:
        return ""
    return report.to_json() if arguments.json else str(report)


def _explain(arguments: argparse.Namespace) -> str:
    import tiacc

    explanation = tiacc.explain(
        arguments.model,
        _shapes(arguments.shapes),
        optimization_level=arguments.level,
        device_type=_device(arguments.device),
        **_option_fields(arguments),
    )
    return explanation.to_json() if arguments.json else str(explanation)


def _report(arguments: argparse.Namespace) -> str:
    from tiacc.report import OptimizedReport

    try:
        data = json.loads(arguments.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgumentError(f"the report {arguments.file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{arguments.file} is no JSON: {error}") from error
    report = OptimizedReport.from_dict(data)
    if arguments.html is None:
        return str(report)
    report.save_html(arguments.html)
    return ""


def _inspect(arguments: argparse.Namespace) -> str:
    from tiacc import saved

    model = saved.inspect(arguments.model)
    if arguments.json:
        return json.dumps(model.to_dict(), indent=2)
    needs = [f"import before loading: {', '.join(model.operators)}"] if model.operators else []
    needs += [f"needed at the first call: the libraries of {', '.join(model.backends)}"] if model.backends else []
    summary = Section(f"{model.path.name}: {model.size_bytes / 1e6:,.1f} MB, {_count(len(model.engines), 'engine')}", notes=needs)
    rows = [
        (
            f"{engine.header.backend} {engine.header.backend_version}",
            engine.header.device,
            f"{engine.size_bytes / 1e6:,.1f} MB",
            engine.header.sha256[:12],
            "yes" if engine.is_intact else "NO",
        )
        for engine in model.engines
    ]
    notes = [
        f"{number}: {', '.join(map(str, engine.header.inputs))} → {', '.join(map(str, engine.header.outputs))}"
        for number, engine in enumerate(model.engines)
    ]
    table = Section("Engines", ("device", "size", "sha256", "intact"), rows, notes)
    return render([summary, table] if rows else [summary])


def _passes(arguments: argparse.Namespace) -> str:
    found = [*_known_passes()]
    if arguments.json:
        return json.dumps(found, indent=2)
    return render(
        Section(
            str(item["name"]),
            notes=[
                item["summary"],
                *(f"option {name} = {default}" for name, default in item["options"].items()),
                *(f"{order} {', '.join(item[order])}" for order in ("after", "before") if item[order]),
            ],
        )
        for item in found
    )


def _known_passes() -> Iterator[dict[str, Any]]:
    from tiacc.passes.base import passes

    for name, cls in passes.items():
        options = {field.name: repr(_default(field)) for field in dataclasses.fields(cls)}
        yield {"name": name, "summary": _summary(cls), "options": options, "after": list(cls.after), "before": list(cls.before)}
    for name, error in passes.failures().items():
        yield {"name": name, "summary": f"cannot be imported: {error}", "options": {}, "after": [], "before": []}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _backends(arguments: argparse.Namespace) -> str:
    found = [*_known_backends()]
    if arguments.json:
        return json.dumps(found, indent=2)
    rows = [
        (item["name"], "+".join(item["device_types"]), item["version"] or "-", "yes" if item["available"] else "no")
        for item in found
    ]
    notes = [f"{item['name']}: {item['reason']}" for item in found if item["reason"]]
    return render([Section("Backends", ("device", "version", "available"), rows, notes)])


def _known_backends() -> Iterator[dict[str, Any]]:
    from tiacc.backends.base import Support, asked, backends, made

    for name, cls in backends.items():
        version = ""
        try:
            backend = made(name)
            support = asked(backend, "available")
            version = backend.version()
        except TiaccError as fault:
            support = Support(False, str(fault))
        except Exception as fault:  # noqa: BLE001 - whatever the backend of another package raises
            support = Support(False, f"its version() raises {type(fault).__name__}: {fault}")
        yield {
            "name": name,
            "summary": _summary(cls),
            "device_types": list(cls.device_types),
            "version": version,
            "available": support.ok,
            "reason": support.reason,
        }
    for name, error in backends.failures().items():
        reason = f"cannot be imported: {error}"
        yield {"name": name, "summary": "", "device_types": [], "version": "", "available": False, "reason": reason}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s'[: number != 1]}"


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _device(text: str) -> int | str:
    if text != "auto":
        return int(text) if text.isdecimal() else text
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shapes(texts: Sequence[str] | None) -> list[Any] | None:
    return None if texts is None else [_literal(text) if text.lstrip().startswith(("{", "[", "(")) else text for text in texts]


def _literal(text: str) -> Any:
    """Return what JSON or Python text says; the text itself where it is neither, for the grammar to refuse."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _option_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {} if arguments.backend is None else {"backend": arguments.backend}
    for text in arguments.options:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--option is {text!r}; write NAME=VALUE, as in -o tolerance=1e-3")
        fields[name.strip().replace("-", "_")] = _value(value.strip())
    fields.update((name, getattr(arguments, name)) for name in ("stop_after", "fuel") if getattr(arguments, name) is not None)
    instruments = [*_instruments(arguments)]
    if instruments:
        fields["instruments"] = instruments
    Options.from_fields(**fields)  # before the work begins
    return fields


def _instruments(arguments: argparse.Namespace) -> Iterator[Any]:
    from tiacc.graph.verifier import verify
    from tiacc.passes.instruments import CompareInstrument, DumpInstrument, VerifyInstrument

    if arguments.dump is not None:
        if arguments.dump.exists() and not arguments.dump.is_dir():
            raise InvalidArgumentError(f"--dump is {arguments.dump}, which is no directory")
        yield DumpInstrument(arguments.dump)
    if arguments.verify_each:
        yield VerifyInstrument(verify)
        yield CompareInstrument()


def _value(text: str) -> Any:
    return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), _literal(text))


def _load_data(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidArgumentError(f"the test data {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever pickle or the archive raises for a file that is something else
        raise InvalidArgumentError(f"{path} is no file of tensors saved by torch.save: {error}") from error


def _check_writable(path: Path) -> None:
    """Find out before the work begins that the report cannot be written."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidArgumentError(f"the report cannot be written to {path}: {folder} must be a folder that can be written to")


if __name__ == "__main__":
    sys.exit(main())
