"""The user's model: read it, check it, copy it, save it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tiacc.errors import ImportGraphError, InvalidArgumentError, TiaccError
from tiacc.graph import torch_compat

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIXES = (".pt", ".pth")
_SUFFIX = ".pt.tmp"
SEED = 0
"""Where the random numbers of a model that draws some come from while it is compared with others."""

_CPU = torch.device("cpu")


def load_model(input_model: Any, data: Sequence[Sequence[Any]], *, least_bytes: int = 0) -> tuple[torch.jit.ScriptModule, list[str]]:
    """Return a private copy of the input model in evaluation mode, and what the user should know of how it was made.

    Args:
        input_model: The path of a ``.pt`` or ``.pth`` TorchScript file, a `torch.jit.ScriptModule`, or a `torch.nn.Module`, which
            is traced.
        data: The arguments of one call each, which a trace is made of and compared with its module on.
        least_bytes: The size of the weights from which on it is an `own_copy`.

    Raises:
        InvalidArgumentError: It is none of these, or has no ``forward``, or is a module that fails.
        ImportGraphError: The file is not TorchScript, or the module cannot be traced or copied.
    """
    if isinstance(input_model, (str, os.PathLike)):
        return _evaluated(_with_forward(_load_file(Path(input_model).expanduser())))
    if isinstance(input_model, torch.jit.ScriptModule):
        try:
            model = _with_forward(input_model)
            return _evaluated(own_copy(model) if _bytes_of(model) >= least_bytes else copy.deepcopy(model))
        except RuntimeError as error:
            raise ImportGraphError(f"torch cannot copy input_model: {_first_line(error)}") from error
    if isinstance(input_model, torch.jit.ScriptFunction):
        raise InvalidArgumentError("input_model is a ScriptFunction; wrap it in a module and script or trace that")
    if isinstance(input_model, torch.nn.Module):
        from tiacc import tracing

        model, notes = tracing.trace(input_model, data)
        return (own_copy(model) if _bytes_of(model) >= least_bytes else model), notes
    raise InvalidArgumentError(
        f"input_model is of type {type(input_model).__name__}; give a torch.jit.ScriptModule, the path of a TorchScript file "
        f"({' or '.join(SUFFIXES)}), or a torch.nn.Module"
    )


def _load_file(path: Path) -> torch.jit.ScriptModule:
    if path.suffix not in SUFFIXES:
        raise InvalidArgumentError(f"input_model is the path {str(path)!r}; a TorchScript file ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise InvalidArgumentError(f"input_model {str(path)!r} is a directory; give a TorchScript file")
    if not path.exists():
        raise InvalidArgumentError(f"input_model {str(path)!r} does not exist")
    try:
        return load_file(path)
    except (RuntimeError, OSError, ValueError) as error:
        unknown = re.search(r"Unknown builtin op: (\w+)(::\w+)", str(error))
        if unknown:
            raise ImportGraphError(
                f"input_model {str(path)!r} needs the operator {''.join(unknown.groups())}, which torch does not know: import the package "
                f"that defines it, such as {unknown[1]!r}, before tiacc.optimize"
            ) from error
        raise ImportGraphError(
            f"input_model {str(path)!r} cannot be read as TorchScript: {_first_line(error)}. A file that torch.save wrote holds weights "
            f"or a pickle; load it in Python, then script or trace the module and save it with torch.jit.save"
        ) from error


def load_file(path: str | os.PathLike[str], device: torch.device | None = _CPU) -> torch.jit.ScriptModule:
    """Load a TorchScript file on a device, or on those that it was saved from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(os.fspath(path), map_location=device)  # type: ignore[no-any-return]


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def own_copy(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Return a copy of a module that goes for good when nothing refers to it, with all that is made of its code.

    torch never frees code that was scripted or traced in this process, nor the constants in it, such as the weights and engines of a
    model made of that; code that was loaded goes with its module. Weights that no call writes into are not copied.
    """
    graph = module.inlined_graph
    if torch_compat.is_same_in_a_file(graph):
        with contextlib.suppress(TiaccError, RuntimeError, OSError):  # it calls a function of Python, or the disk is full
            shell, weights = torch_compat.without_weights(module)
            if torch_compat.may_keep_state(graph):
                if not torch_compat.reads_only(graph, weights):  # what else it reads may be a part of a weight
                    return on_device(module, None)
                weights = copy.deepcopy(weights)
            loaded = on_device(shell, None)
            torch_compat.give_weights(loaded, weights)
            return loaded
    return copy.deepcopy(module)


def on_device(module: torch.jit.ScriptModule, device: torch.device | None) -> torch.jit.ScriptModule:
    """Return a copy of a module on a device, constants in its code included, which ``module.to`` leaves where they are.

    Args:
        module: The module.
        device: The device; None for those that its tensors are on.
    """
    with TemporaryModel(None) as file:  # a copy by way of memory would take five times that of the weights
        file.write(module)
        return file.load(device)


def _with_forward(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    if not module._c._has_method("forward"):
        raise InvalidArgumentError(f"input_model has no method forward; it has {', '.join(module._c._method_names()) or 'none'}")
    return module


def _evaluated(module: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, list[str]]:
    notes = []
    if torch_compat.is_training(module):
        module.eval()
        notes.append("input_model is in training mode; its copy was optimized and measured in evaluation mode")
    return module, notes


def check_save_path(save_path: Any) -> Path | None:
    """Return where the optimized model shall be saved, or None for nowhere.

    Raises:
        InvalidArgumentError: It is not a path that ends in ``.pt`` or ``.pth``, in a directory that can be written to.
    """
    if save_path is None:
        return None
    if not isinstance(save_path, (str, os.PathLike)) or not os.fspath(save_path):
        raise InvalidArgumentError(f"save_path is {save_path!r}; give the path of a file, or None")
    path = Path(save_path).expanduser()
    if path.suffix not in SUFFIXES:
        raise InvalidArgumentError(f"save_path {str(path)!r} must end in {' or '.join(SUFFIXES)}")
    try:
        path = path.resolve()  # a link stays one, to the new file
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"save_path {str(path)!r} is no path: {error}") from error
    if path.is_dir():
        raise InvalidArgumentError(f"save_path {str(path)!r} is a directory; give the path of a file")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"save_path {str(path)!r} is in a directory that does not exist; create it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InvalidArgumentError(f"save_path {str(path)!r} cannot be written to; choose another")
    return path


class TemporaryModel:
    """A saved model beside its final place, moved there when it is accepted and removed when it is not.

    It is locked as long as its process lives. What a process that was killed has left is removed by the next that saves to the same place.
    """

    def __init__(self, save_path: Path | None) -> None:
        folder = Path(tempfile.gettempdir()) if save_path is None else save_path.parent
        place = hashlib.sha256(save_path.name.encode() if save_path is not None else b"").hexdigest()[:8]
        prefix = f".tiacc-{place}-"
        for left in folder.glob(f"{prefix}*{_SUFFIX}"):
            _remove_if_left(left)
        self._handle, self.path = _locked_file(folder, prefix)
        self._save_path = save_path

    def __enter__(self) -> TemporaryModel:
        return self

    def write(self, module: torch.jit.ScriptModule) -> None:
        """Save a module.

        Raises:
            TiaccError: The disk is full, or torch cannot save the module.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.save(module, os.fspath(self.path))
        except (RuntimeError, OSError) as error:
            raise TiaccError(f"the model cannot be written to {str(self.path.parent)!r}: {_first_line(error)}") from error

    def load(self, device: torch.device | None = _CPU) -> torch.jit.ScriptModule:
        """Load what was written, as a user of the file would."""
        return load_file(self.path, device)

    def keep(self) -> None:
        """Move the file to its final place in one step; without a `save_path` there is none."""
        if self._save_path is not None:
            mask = os.umask(0)
            os.umask(mask)
            self.path.chmod(0o666 & ~mask)
            self.path.replace(self._save_path)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        if self._handle is not None:
            os.close(self._handle)


def _locked_file(folder: Path, prefix: str) -> tuple[int | None, Path]:
    """Return a new file: open, and locked until it is closed or its process ends, where the system has such locks; and its path."""
    while True:
        handle, name = tempfile.mkstemp(_SUFFIX, prefix, folder)
        is_locked = _lock(handle, wait=True)
        if is_locked and _is_at(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)
        if not is_locked:
            return None, Path(name)


def _remove_if_left(path: Path) -> None:
    """Remove a file that its process has left: one that nobody has locked."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # it is gone, or another user's
        return
    try:
        if _lock(handle, wait=False) and _is_at(handle, path):
            path.unlink()
    except OSError:
        return
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file, and return whether that succeeded; some file systems, and Windows, have no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def call(module: torch.nn.Module, item: Sequence[Any]) -> Any:
    """Run a model on copies of the arguments, without gradients: a model that writes into its inputs changes nothing of the user's.

    Random numbers are the same in each call.
    """
    with torch.no_grad(), same_random_numbers():
        return module(*cloned(item))


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Have torch draw the same random numbers each time, and leave its random state as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(SEED)
        yield


def cloned(item: Any) -> Any:
    """Return a copy of arguments: the tensors in nested tuples, lists and dicts are cloned, without gradients."""
    return mapped(item, lambda tensor: tensor.detach().clone(memory_format=torch.preserve_format))


def moved(item: Any, device: torch.device) -> Any:
    """Return arguments with the tensors in nested tuples, lists and dicts on a device."""
    return mapped(item, lambda tensor: tensor.to(device))


def mapped(item: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return arguments with a function of each tensor in nested tuples, lists and dicts, in order."""
    if isinstance(item, torch.Tensor):
        return function(item)
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(mapped(member, function) for member in item))
    if isinstance(item, (list, tuple)):
        return type(item)(mapped(member, function) for member in item)
    if isinstance(item, Mapping):
        return {key: mapped(value, function) for key, value in item.items()}
    return item


def reversed_values(item: Any, *, integers: bool) -> Any:
    """Return a copy of arguments with the numbers of each tensor in the reverse order.

    Args:
        item: Tensors in nested tuples, lists and dicts.
        integers: Whether those of integers are reversed too; they may be indices, each with a limit of its own.
    """
    if isinstance(item, torch.Tensor):
        copy_ = item.detach().clone(memory_format=torch.contiguous_format)
        return copy_.flatten().flip(0).reshape(item.shape) if integers or item.is_floating_point() else copy_
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(reversed_values(member, integers=integers) for member in item))
    if isinstance(item, (list, tuple)):
        return type(item)(reversed_values(member, integers=integers) for member in item)
    if isinstance(item, dict):
        return {key: reversed_values(value, integers=integers) for key, value in item.items()}
    return item


def run_checked(module: torch.nn.Module, item: Sequence[Any], index: int) -> Any:
    """Run the input model on an item of the test data.

    Raises:
        InvalidArgumentError: The model raises; the message quotes what, and the shapes of the item.
    """
    try:
        return call(module, item)
    except Exception as error:  # the user's model may raise anything
        raise InvalidArgumentError(
            f"input_model fails on item {index} of the test data (shapes {shapes_text(item)}): {reason_of(error)}. Correct input_shapes or "
            f"test_data so that the model itself runs"
        ) from error


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def shapes_text(item: Sequence[Any]) -> str:
    """Return the shapes of the tensors of an item, for a message."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(item))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return what an error says in one line; of one that came through TorchScript, what was raised in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    if raised:
        return raised[-1].removeprefix("RuntimeError: ")
    if any(line.startswith("Declaration: ") for line in lines):  # an argument is not what the signature says, which goes on with how
        return lines[0]
    return lines[-1] if lines else type(error).__name__
