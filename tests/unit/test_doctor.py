"""herd doctor: it finds what is wrong, says the fix, and its exit code says whether the demo can run."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_cache import fresh_cache

from herd import doctor as module
from herd.cli import main
from herd.data.sources.package_list import SOURCES
from herd.doctor import (
    Check,
    check_disk,
    check_memory,
    check_packages,
    check_python,
    check_sources,
    check_torch,
    doctor,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, *clients: str) -> None:
    """Put a file for each source of these clients into the cache."""
    cache.mkdir(exist_ok=True)
    for source in SOURCES:
        if source.client in clients:
            (cache / f"{source.slug}-{source.version.replace(':', '_')}.zip").write_bytes(b"12345")


def without(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    which, find_spec = shutil.which, module.importlib.util.find_spec
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if name in programs else which(name, *a, **k))
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *a: None if name in programs else find_spec(name, *a)
    )


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_it_passes_on_a_machine_that_can_run_the_demo_in_a_few_seconds(cache: Path):
    fresh_cache(cache)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-m", "herd", "doctor"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("The demo can run: make demo\n")
    # About 3 s of the processor's time, most of them torch's import.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


@pytest.mark.parametrize(("gflops", "largest"), [(1.0, 512), (1000.0, 2048)])
def test_a_slow_processor_multiplies_smaller_matrices_and_a_fast_one_large_ones(
    gflops: float, largest: int, monkeypatch: pytest.MonkeyPatch
):
    clock_s, sizes = 0.0, []

    class Square:
        def __init__(self, size: int) -> None:
            self.size = size

        def __matmul__(self, other: "Square") -> None:
            nonlocal clock_s
            clock_s += 2 * self.size**3 / (gflops * 1e9)
            sizes.append(self.size)

    monkeypatch.setattr("torch.ones", lambda rows, columns, dtype: Square(rows))
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock_s)
    assert module.multiply_gflops(None, budget_s=0.5) == pytest.approx(gflops)
    assert max(sizes) == largest and clock_s < 1.0


def test_json_has_the_same_in_numbers(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["ok"] is True
    facts = {check["name"]: check["facts"] for check in reported["checks"]}
    assert facts["threads"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["bf16"]["float32_gflops"] > 1
    assert facts["memory"]["available_bytes"] > 1 << 30
    assert facts["cache"]["of"] == len(SOURCES)
    assert all(check["fix"] for check in reported["checks"] if check["state"] == "bad")


def test_one_bad_finding_is_exit_code_one_and_comes_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(module, "DISK_BYTES", 1 << 60)
    assert doctor(as_json=False) == 1
    out = capsys.readouterr().out
    assert "bad   disk" in out
    assert "fix: runs/ takes up to" in out
    assert out.endswith("Fix what is bad, then run herd doctor again.\n")


def test_an_old_python_or_torch_is_bad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MIN_PYTHON", (4, 0))
    monkeypatch.setattr(module, "MIN_TORCH", (99, 0))
    assert check_python().state == "bad"
    assert states(check_torch())["torch"] == "bad"


def test_without_torch_it_still_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = check_torch()
    assert check.state == "bad"
    assert "pip install" in check.fix


def test_too_little_memory_is_bad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "available_memory", lambda: 5 << 30)
    assert check_memory().found == "5.0 GiB available"
    assert check_memory().state == "bad"
    monkeypatch.setattr(module, "available_memory", lambda: None)
    assert check_memory().state == "note"


def test_disk_is_measured_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert abs(check_disk().facts["free_bytes"] - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_a_missing_extra_is_bad_and_named(monkeypatch: pytest.MonkeyPatch):
    assert check_packages().state == "ok"
    without(monkeypatch, "rensa")
    assert check_packages().found == "rensa not installed"
    assert "'.[data]'" in check_packages().fix


def test_an_empty_cache_is_a_note_and_a_full_one_is_ok(cache: Path):
    assert states(check_sources())["cache"] == "note"
    fill(cache, "pip", "npm", "apt")
    (first, *_) = check_sources()
    assert first.state == "ok"
    assert first.facts["sources"] == len(SOURCES)
    assert first.facts["bytes"] == 5 * len(SOURCES)


def test_a_cache_that_cannot_be_written_is_bad(cache: Path):
    cache.write_text("a file where the folder should be")
    assert states(check_sources())["cache"] == "bad"


def test_a_missing_client_is_a_note_that_names_what_is_lost_unless_the_cache_has_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    without(monkeypatch, "npm")
    lost = next(source.name for source in SOURCES if source.client == "npm")
    check = next(check for check in check_sources() if check.name == "npm")
    assert (check.state, lost in check.found) == ("note", True)
    fill(cache, "npm")
    assert states(check_sources())["npm"] == "ok"


def test_without_any_client_the_demo_runs_only_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "pip", "pip3", "npm", "apt-get")
    assert states(check_sources())["sources"] == "bad"
    fill(cache, "pip", "npm", "apt")
    assert "bad" not in states(check_sources()).values()


def test_compiler_and_browser_are_never_needed(monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "cc", "gcc", "clang", "chromium", "chromium-browser", "google-chrome")
    monkeypatch.delenv("CC", raising=False)
    assert [check.state for check in (module.check_compiler(), module.check_browser())] == ["note", "note"]
