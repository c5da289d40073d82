"""Every route under schemathesis: 10,000 requests from the server's own description, none answered with 5xx, and the
engine as it was. schemathesis is no dependency: `pip install schemathesis` into an environment of its own, and name its
program in HERD_SCHEMATHESIS.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

CASES = 10_000
HOOKS = '''
import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """The model that there is, or most requests would end at its name."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "random"
'''


@pytest.mark.slow
def test_ten_thousand_requests_of_all_routes_bring_no_5xx_and_leave_no_page_in_use(tiny_folder: Path, tmp_path: Path):
    program = os.environ.get("HERD_SCHEMATHESIS") or shutil.which("st")
    if not program:
        pytest.skip("needs schemathesis (HERD_SCHEMATHESIS)")
    (tmp_path / "hooks.py").write_text(HOOKS)
    serve = [sys.executable, "-m", "herd", "serve", tiny_folder, "--port", "0", "--max-model-len", "96"]
    with subprocess.Popen([*map(str, serve)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = re.findall(r"http://[0-9.:]+", server.stdout.readline())[0]
            options = ["--checks", "not_a_server_error", "--no-shrink", "--continue-on-failure", "--no-color"]
            options += ["--phases", "coverage,fuzzing", "--warnings", "off", "--suppress-health-check", "all"]
            options += ["--max-examples", str(CASES // 12), "--seed", "1", "--report-ndjson-path", "cases.ndjson"]
            environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
            done = subprocess.run(
                [program, "run", f"{url}/openapi.json", *options],
                cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-3000:]
            counts = requests_by_status(url)
            assert sum(counts.values()) >= CASES and not [status for status in counts if status.startswith("5")]
            body = {"model": "random", "prompt": "the cat", "max_tokens": 4}
            data = json.dumps(body).encode()
            asked = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
            assert json.load(urllib.request.urlopen(asked, timeout=60))["usage"]["completion_tokens"] > 0
            assert gauge(url, "herd_engine_used_bytes") == gauge(url, "herd_engine_running") == 0
            assert server.poll() is None
        finally:
            server.kill()


def metrics(url: str) -> list[str]:
    return urllib.request.urlopen(f"{url}/metrics", timeout=60).read().decode().splitlines()


def requests_by_status(url: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in metrics(url):
        if match := re.fullmatch(r'herd_requests_total\{.*status="(\d+)"\} ([0-9.e+]+)', line):
            found[match[1]] = found.get(match[1], 0) + int(float(match[2]))
    return found


def gauge(url: str, name: str) -> float:
    return float(next(line.split()[-1] for line in metrics(url) if line.startswith(f"{name}{{")))
