"""`vrae info`: what a bug report should say of the machine and the programs on it, and nothing that is private."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch

from vrae import __version__
from vrae.apps.parser import configs

PACKAGES = (
    *("torch", "numpy", "sentencepiece", "datasets", "safetensors", "huggingface_hub", "jsonargparse", "tqdm"),
    "chitchat-dataset",
)
# What change what vrae does. Paths, addresses and tokens are not among them: those may be private.
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
    *("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "NO_COLOR", "LANG", "LC_ALL", "TERM", "COLUMNS"),
)


def describe(model: str = "") -> dict[str, Any]:
    """JSON values; with a model, what it is. Raises ModelError where there is no such model."""
    backends: Any = torch.backends
    report: dict[str, Any] = {
        "vrae": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "extras": {extra: _missing(needed) or "installed" for extra, needed in sorted(_extras().items())},
        "torch": {
            "cuda": torch.version.cuda,
            "cudnn": backends.cudnn.version() if backends.cudnn.is_available() else None,
            "mkl": backends.mkl.is_available(),
            "onednn": backends.mkldnn.is_available(),
            "openmp": backends.openmp.is_available(),
            "instructions": backends.cpu.get_cpu_capability(),
        },
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "configs": list(configs()),
    }
    if model:
        from vrae.generation.card import publishable
        from vrae.generation.pipeline import load

        loaded = load(model)
        parameters = sum(p.numel() for p in loaded.model.parameters())
        report["model"] = {"folder": model, "parameters": parameters, **publishable(loaded.info)}
    return report


def lines(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A report for people: a line for each value, what belongs together under its name."""
    for key, value in report.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}"
            yield from lines(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{indent}{key:<{20 - len(indent)}} {'-' if shown in (None, '', {}) else shown}"


def _extras() -> dict[str, list[str]]:
    """The packages that each extra of vrae needs, by its name."""
    found: dict[str, list[str]] = {}
    for line in _requirements():
        package, _, marker = line.partition(";")
        if "extra ==" in marker:
            extra = marker.rpartition("==")[2].strip(" '\"")
            if extra != "dev":
                found.setdefault(extra, []).append(package.strip())
    return found


def _requirements() -> list[str]:
    try:
        return metadata.requires("vrae") or []
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return []


def _missing(requirements: list[str]) -> str:
    names = [requirement.split("[")[0].split("<")[0].split(">")[0].split("=")[0].strip() for requirement in requirements]
    missing = [name for name in names if _version(name) == "not installed"]
    return f"without {', '.join(missing)}" if missing else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
