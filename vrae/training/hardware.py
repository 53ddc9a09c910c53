"""Where to compute, and in what precision."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

from vrae.distributed import world
from vrae.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; of several processes each has its own. Raises ConfigError for one not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.index is not None and world() > 1:
        raise ConfigError(f"device {name!r}: several processes cannot share it. Pass cuda: each takes its own")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies in it: recent GPUs, and CPUs with AVX512-BF16."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def describe(device: torch.device, precision: str) -> str:
    """What a model remembers of the machine that trained it."""
    processes = f"{world()} processes, " if world() > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {processes}{precision}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {processes}{threads} thread{'s' * (threads > 1)}, {precision}"


def _processor() -> str:
    try:  # where Python itself knows no name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def keep_memory() -> None:
    """Lets this process keep the memory it has freed, where the C library is glibc; elsewhere it does nothing.

    glibc gives large blocks back to the system at once, and gets them again page by page, each filled with zeros: in a training
    step, whose tensors are the same each time, a tenth of the time.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    set_option(mmap_max, 0)
    set_option(trim_threshold, 2**31 - 1)
