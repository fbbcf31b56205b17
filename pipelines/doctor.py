"""`wsi doctor`: is this machine ready? PASS, WARN or FAIL, each with what to do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from pipelines.console import Console

Verdict = tuple[Literal["PASS", "WARN", "FAIL"], str, str]

_LIBRARIES = ("torch", "torchvision", "timm", "openslide", "h5py", "zarr", "sklearn", "cv2")
_LOW_GB = 20
_GIB = 1 << 30


def run(out: Path | None, console: Console) -> int:
    """Print every check; 1 when one fails."""
    checks: list[Callable[[], Iterator[Verdict]]] = [
        _machine,
        _libraries,
        _slides,
        _device,
        _weights,
        lambda: _output(out or Path.cwd()),
    ]
    verdicts = [verdict for check in checks for verdict in check()]
    console.table(["", "what", "found"], verdicts, "doctor")
    console.result([{"verdict": v, "what": what, "found": found} for v, what, found in verdicts])
    failed = sum(verdict == "FAIL" for verdict, _, _ in verdicts)
    console.say("ready: try `wsi demo`" if not failed else f"{failed} checks failed")
    return 1 if failed else 0


def _machine() -> Iterator[Verdict]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    verdict = "PASS" if memory > 6 else "WARN"
    yield verdict, "machine", f"{cores} cores, {memory:.0f} GiB memory"


def _libraries() -> Iterator[Verdict]:
    packages = metadata.packages_distributions()
    for name in _LIBRARIES:
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            yield (
                "FAIL",
                name,
                f"cannot be loaded: {error} — install wsi again in a new environment",
            )
        else:
            known = packages.get(name)
            yield "PASS", name, metadata.version(known[0]) if known else "version unknown"


def _slides() -> Iterator[Verdict]:
    from wsi.slides import open_slide
    from wsi.slides.dress import write_slide
    from wsi.slides.synthetic import position_level

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.tif"
        level0 = position_level((512, 512), (1, 1))
        write_slide(path, [level0], mpp=0.5, lossless=True)
        with open_slide(path) as slide:
            same = bool((slide.read((0, 0), 0, (512, 512)) == level0).all())
    if same:
        yield "PASS", "slides", "a test slide was written and read back unchanged"
    else:
        yield "FAIL", "slides", "a test slide came back changed — install openslide-bin again"


def _device() -> Iterator[Verdict]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        yield "PASS", "device", f"cuda {torch.version.cuda}: {', '.join(names)}"
    elif torch.backends.mps.is_available():
        yield "PASS", "device", "mps"
    elif Path("/proc/driver/nvidia/version").exists():
        yield (
            "WARN",
            "device",
            f"a GPU driver is here, but torch (CUDA {torch.version.cuda}) cannot use it — "
            "install a torch build for the driver's CUDA version",
        )
    else:
        yield "PASS", "device", "cpu only; large encoders will be slow"


def _weights() -> Iterator[Verdict]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = sorted(cache.glob("models--*")) if cache.is_dir() else []
    offline = ", offline" if constants.HF_HUB_OFFLINE else ""
    yield "PASS", "weights cache", f"{len(models)} models{offline}; texture-v1 needs none"


def _output(folder: Path) -> Iterator[Verdict]:
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(dir=there) as inside:
            source = Path(inside) / "a"
            source.write_bytes(b"x")
            source.replace(Path(inside) / "b")
    except OSError as error:
        yield "FAIL", "output folder", f"{there} cannot be written ({error.strerror}) — give --out"
        return
    free = shutil.disk_usage(there).free / 1e9
    verdict = "PASS" if free > _LOW_GB else "WARN"
    yield verdict, "output folder", f"{free:.0f} GB free, renames are atomic"
