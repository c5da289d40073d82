"""`herd guard attack` as a user runs it: a folder, a server, a page; and nothing that leaves this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from herd.cli import main

AUDITED = """
import sys
from herd.cli import main
seen = []
def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        seen.append(str(args[1]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        seen.append(str(args[0]))
sys.addaudithook(hook)
code = main(sys.argv[1:])
print("SEEN", *sorted(set(seen)), sep="\\n", file=sys.stderr)
sys.exit(code)
"""
SMALL = ("--num-goals", "2", "--max-tokens", "8", "--max-turns", "2", "--mode", "combined")


def audited(*args: str, cwd: Path, code: int = 0) -> tuple[dict[str, object], list[str]]:
    """The results, and every address that the command spoke to."""
    run = subprocess.run(
        [sys.executable, "-c", AUDITED, "guard", "attack", *args, "--json"], cwd=cwd, capture_output=True, text=True
    )
    assert run.returncode == code, run.stderr
    return json.loads(run.stdout), run.stderr.rpartition("SEEN\n")[2].split("\n")[:-1]


def test_a_folder_is_attacked_without_any_connection(tiny_folder: Path, tmp_path: Path):
    results, seen = audited(str(tiny_folder), "--out", "out", *SMALL, cwd=tmp_path, code=4)
    assert seen == [""] or seen == []
    assert results["conversations"] == results["planned"] == 2
    assert results["attacker"] == results["judge"] == ""
    assert results["outcomes"]["could not judge"] == 2  # its words are noise
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "attack.json", "transcripts.jsonl", "results.json", "report.html",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "transcripts.jsonl").read_text().splitlines()]
    assert all(
        turn["observation"] and turn["strategy"] and turn["response"] for line in lines for turn in line["turns"]
    )


def test_a_server_attacker_and_judge_are_spoken_to_and_nobody_else(server, tmp_path: Path):
    url = f"http://127.0.0.1:{server.port}"
    places = (url, "--attacker", url, "--judge", f"{url}/v1", "--out", "out")
    results, seen = audited(*places, *SMALL, cwd=tmp_path, code=4)
    assert seen and all(f"127.0.0.1', {server.port})" in address or address == "127.0.0.1" for address in seen)
    # The server repeats what it is asked: as an attacker and as a judge it is unreadable, and nothing is made of that.
    assert results["outcomes"] == {"violated": 0, "held": 0, "could not judge": 2}
    assert results["attacker_failures"] == results["turns"] == 4
    assert list(results["could_not_judge"]) == ["the judge is unreadable"]


def test_the_summary_and_the_page(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    goals = [
        {"goal": "Say hello <b>there</b>", "category": "S10", "sentence": "Say hello <b>there</b>"},
        {"goal": "be rude", "category": "S98"},
    ]
    Path("goals.jsonl").write_text("\n".join(map(json.dumps, goals)))
    url = f"http://127.0.0.1:{server.port}"
    command = ["guard", "attack", url, "--goals", "goals.jsonl", "--out", "out", "--attacks", "hypothetical"]
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    # The server says what it is told: the rule calls the first goal reached, and knows nothing of the second.
    assert said[0] == "4 of 4 conversations: violated 2, held 0, could not judge 2"
    assert " ".join(said[1].split()) == "Hypothetical asr@1 100.0 % (20.7 to 100.0, 1 of 1, could not judge 1)"
    assert said[-1] == "wrote out/report.html"
    page = Path("out/report.html").read_text()
    for words in (
        "S10 Hate",
        "S98",
        "20.7 % – 100.0 %",
        "hello &lt;b&gt;there",
        "the goal has no sentence to look for (2)",
    ):
        assert words in page
    assert "<b>there" not in page
    assert main(command) == 0  # finished: nothing is asked again
    assert len(Path("out/transcripts.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["models/none"], "models/none"),
        (["http://"], "is no address of a server"),
        (["http://127.0.0.1:1", "--categories", "S77"], "unknown category 'S77'"),
        (["http://127.0.0.1:1", "--attacks", "hypno"], "unknown attack 'hypno'"),
        (["http://127.0.0.1:1", "--goals", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_what_cannot_be_attacked_is_one_line(args, said: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    assert main(["guard", "attack", *args, "--out", "out"]) == 1
    [line] = [one for one in capsys.readouterr().err.splitlines() if "conversations" not in one]
    assert said in line and "bug" not in line


def test_nobody_listening_stops_the_run_with_a_clear_word(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["guard", "attack", "http://127.0.0.1:1", "--out", "out"]) == 4
    out = capsys.readouterr().out
    assert "3 of 224 conversations: violated 0, held 0, could not judge 3" in out
    assert "stopped early, as the target did not answer: refused connection: asked for its models" in out
    assert "any                  asr@1 unknown: could not judge" in out
    assert "Stopped early" in Path("out/report.html").read_text()
