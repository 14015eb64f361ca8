import subprocess
import sys
from importlib import metadata

import pytest
import torch

from tiacc import environment
from tiacc.environment import cpu_flags, cpu_has_bf16, hardware_environment, software_environment

X86 = "model name\t: Xeon 9\nflags\t\t: fpu avx2 avx512f {}\n\nprocessor\t: 1\nmodel name\t: other\nflags\t\t: none\n"
ARM = "processor\t: 0\nBogoMIPS\t: 2100\nFeatures\t: fp asimd sve i8mm {}\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Return a function that gives this machine another CPU."""

    def become(cpuinfo, capabilities=None):
        path = tmp_path / "cpuinfo"
        if cpuinfo is not None:
            path.write_text(cpuinfo)
        monkeypatch.setattr(environment, "_CPUINFO", path)
        if capabilities is None:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        else:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        cpu_flags.cache_clear()
        environment._cpuinfo.cache_clear()

    yield become
    monkeypatch.undo()
    cpu_flags.cache_clear()
    environment._cpuinfo.cache_clear()


def test_software_here():
    versions = {item.software: item.version for item in software_environment()}
    assert list(versions)[:4] == ["torch", "CUDA", "cuDNN", "TensorRT"]
    assert versions["torch"] == torch.__version__
    assert versions["tiacc"] == metadata.version("tiacc")
    assert versions["CUDA"] == (torch.version.cuda or "not installed")
    assert all(isinstance(version, str) and version for version in versions.values())


def test_missing_software_is_named(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    versions = {item.software: item.version for item in software_environment()}
    assert versions.pop("torch") == torch.__version__
    assert set(versions.values()) == {"not installed"}


def test_a_library_is_found_under_any_of_its_packages(monkeypatch):
    def only_cu12(package):
        if package == "tensorrt-cu12":
            return "10.7.0"
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", only_cu12)
    assert {item.software: item.version for item in software_environment()}["TensorRT"] == "10.7.0"


@pytest.mark.parametrize(("number", "text"), [(91900, "9.19.0"), (92401, "9.24.1"), (8907, "8.9.7"), (None, "not installed")])
def test_the_version_of_cudnn(monkeypatch, number, text):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert software_environment()[2].version == text


def test_a_cudnn_that_does_not_fit_is_no_error(monkeypatch):
    def clash():
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr(torch.backends.cudnn, "version", clash)
    assert software_environment()[2].version == "incompatible"


def test_the_cpu_here():
    hardware = hardware_environment()
    assert hardware.device_type == "CPU"
    assert torch.backends.cpu.get_cpu_capability() in hardware.microarchitecture
    assert ("bf16" in hardware.microarchitecture) is cpu_has_bf16()


@pytest.mark.parametrize(
    ("cpuinfo", "capabilities", "bf16"),
    [
        (X86.format(""), None, False),
        (X86.format("avx512_bf16"), None, True),
        (X86.format("amx_tile amx_bf16"), None, True),
        (ARM.format(""), None, False),
        (ARM.format("bf16"), None, True),
        (None, {"avx512_bf16": True}, True),
        (None, {"avx512_bf16": False, "architecture": "bf16"}, False),
        (None, None, False),
    ],
)
def test_bf16_by_what_is_known_of_the_cpu(cpu, cpuinfo, capabilities, bf16):
    cpu(cpuinfo, capabilities)
    assert cpu_has_bf16() is bf16
    assert ("bf16" in hardware_environment("cpu").microarchitecture) is bf16


def test_the_name_of_the_first_cpu(cpu):
    cpu(X86.format("amx_tile"))
    name = hardware_environment("cpu").microarchitecture
    assert name.startswith("Xeon 9 (") and "AMX" in name


def test_a_cpu_without_a_name(cpu, monkeypatch):
    cpu(None)
    monkeypatch.setattr("platform.processor", str)
    monkeypatch.setattr("platform.machine", str)
    assert hardware_environment("cpu").microarchitecture.startswith("unknown CPU (")


def test_a_gpu_that_is_not_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware_environment("cuda").microarchitecture == "no GPU"
    built = hardware_environment("cuda", ("sm80", "sm89"))
    assert (built.device_type, built.microarchitecture) == ("GPU", "built for sm80, sm89, not run")


def test_a_gpu(monkeypatch):
    class Properties:
        name, major, minor = "NVIDIA H200", 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert hardware_environment("cuda:0").microarchitecture == "NVIDIA H200 (sm90)"

    def absent(device):
        raise AssertionError("Invalid device id")

    monkeypatch.setattr(torch.cuda, "get_device_properties", absent)
    assert hardware_environment("cuda:7").microarchitecture == "unknown GPU"


def test_asking_imports_no_vendor_library():
    code = (
        "import sys; from tiacc import environment as e; e.software_environment(); e.hardware_environment();"
        "print({'openvino', 'tensorrt', 'tensorrt_rtx', 'triton', 'pycuda', 'cudnn', 'sympy', 'rich'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
