"""herd.cli: what a user sees of every command, and of everything that goes wrong."""

import dataclasses
import errno
import inspect
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.cli import main
from herd.commands import COMMANDS, Command, single
from herd.commands.command import named
from herd.commands.stages import STAGES, stage
from herd.config import PRESETS
from herd.core.console import in_one_line, traceback_log
from herd.core.device import VARIABLE
from herd.core.lineage import Stage
from herd.errors import HerdError
from herd.stages.recipe import KEYS, StageKind


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))


def python(code: str, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)


def test_help_lists_every_command_and_imports_nothing_heavy():
    run = python("import sys; from herd.cli import main; main(['--help']); print(sorted(sys.modules))")
    text, modules = run.stdout.rsplit("\n[", 1)
    assert all(f"  {name} " in text for name in COMMANDS)
    assert not [name for name in ("torch", "numpy", "tyro", "rich", "pyarrow") if f"'{name}'" in modules]


def test_help_takes_little_more_than_the_standard_library_that_it_imports():
    def seconds(*command: str) -> float:
        """Of the processor's time, as others may use it too."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    library = "import argparse, dataclasses, importlib.metadata, json, pathlib, subprocess, typing"
    both = [(seconds("-m", "herd", "--help"), seconds("-c", library)) for _ in range(5)]
    # 1.8 times as much, 0.12 s, where this was written; numpy makes it 4.3 times.
    assert min(ours for ours, _ in both) < 3 * min(theirs for _, theirs in both)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_family_of_commands_is_listed(flag: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", flag]) == 0
    out = capsys.readouterr().out
    assert "data fetch" in out
    assert "pretrain" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example_and_without_torch(name: str):
    code = "import sys; from herd.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    run = python(code, *name.split(), "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"usage: herd {name}" in run.stdout
    assert f"Example: {COMMANDS[name].example}" in " ".join(run.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_and_gives_its_default(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "100")  # wider, tyro sets boxes side by side
    assert main([*name.split(), "--help"]) == 0
    boxes = [line[2:].rstrip(" │") for line in capsys.readouterr().out.splitlines() if line[:2] in {"│ ", "  "}]
    # An option stands at the left of its box; its text follows after two blanks, or indented on the next line.
    entries = re.split(r"\n(?=--?[a-z]|PATH|STR|\[)", "\n".join(["", *boxes]))[1:]
    texts = dict(re.split(r"\s{2,}", entry, maxsplit=1) for entry in entries)
    assert texts.pop("-h, --help")
    explained = re.compile(r"[^(].{8,}\s\((default:.*|required)\)", re.S)
    assert [option for option, text in texts.items() if not explained.match(text)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_is_understood(name: str, monkeypatch: pytest.MonkeyPatch):
    command, done = COMMANDS[name], []
    if command.usage is not None:
        monkeypatch.setitem(COMMANDS, name, dataclasses.replace(command, does=done.append))
    else:
        signature = inspect.signature(command.does)

        def does(*args: object, **kwargs: object) -> None:
            done.append(signature.bind(*args, **kwargs))

        does.__signature__ = signature  # type: ignore[attr-defined]
        does.__annotations__ = command.does.__annotations__
        does.__doc__ = command.does.__doc__
        monkeypatch.setitem(COMMANDS, name, dataclasses.replace(command, does=does))
    assert main(command.example.split()[1:]) == 0
    assert len(done) == 1


@pytest.mark.parametrize("kind", STAGES.values(), ids=lambda kind: kind.name)
def test_each_stage_is_where_the_table_says_and_takes_what_it_is_given(kind: StageKind):
    assert dataclasses.is_dataclass(kind.config())
    kind.config()()  # every field has a default, for the command without --recipe
    [place] = kind.function.args
    parameters = inspect.signature(named(place)).parameters
    assert list(parameters)[1:] == (["stages_and_out"] if kind.reads_run else [*kind.reads, "out"])
    keys = {field.name for field in dataclasses.fields(kind.config())}
    assert not keys & {"kind", *KEYS.values()}  # they would hide what recipes say of the graph


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["pretrian"], "unknown command 'pretrian', did you mean 'pretrain'?"),
        (["data", "bild"], "unknown command 'data bild', did you mean 'data build'?"),
        (["data"], "'data' is one of several commands: data build, data fetch, data show, data stats"),
        (["--recipe"], "unknown command '--recipe'"),
    ],
)
def test_a_misspelt_command_is_refused_with_the_nearest(args: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(f"herd: {told}")


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("doctor --jsn", "--json"),
        ("chat runs/tiny/sft --temprature 0.7", "--temperature"),
        ("pretrain m --data d --out o --num-token 5", "--num-tokens"),
        ("pretrain m --data d --out o --optimizer.matrix-lrr 5", "--optimizer.matrix-lr"),
        ("serve runs/tiny/sft --prt 1", "--port"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest(line: str, nearest: str, capsys: pytest.CaptureFixture[str]):
    assert main(line.split()) == 2
    assert nearest in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pretrain m --out o", "--data"),
        ("serve runs/tiny/sft --port eighty", "--port"),
        ("report", "RUN"),
        ("doctor twice", "twice"),
    ],
)
def test_what_lacks_or_has_a_wrong_value_is_refused(line: str, told: str, capsys: pytest.CaptureFixture[str]):
    assert main(line.split()) == 2
    assert told.lower() in capsys.readouterr().err.lower()


def test_the_recipe_gives_the_defaults_and_options_stand_above_it(monkeypatch: pytest.MonkeyPatch):
    Path("own.toml").write_text(
        "[data]\n[model]\n[pretrain]\nseed = 7\ncontext = 99\n[pretrain.optimizer]\nmatrix_lr = 0.5\n"
    )
    seen = []
    monkeypatch.setattr(single, "run_stage", lambda kind, config, parents, out, _: seen.append((config, parents, out)))
    for said in ("--recipe own.toml", "--recipe=own.toml"):
        assert main(f"pretrain m {said} --data d --out o --context 100 --optimizer.betas 0.1 0.2".split()) == 0
    config, parents, out = seen[0]
    assert seen[0] == seen[1]
    assert (config.seed, config.context, config.optimizer.matrix_lr, config.optimizer.betas) == (
        7,
        100,
        0.5,
        (0.1, 0.2),
    )
    assert (parents, out) == ({"model": Path("m"), "data": Path("d")}, Path("o"))


def test_a_table_of_several_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    Path("own.toml").write_text(
        '[data]\n[model]\n[stage.a]\nkind = "sft"\nseed = 1\n[stage.b]\nkind = "sft"\nseed = 2\n'
    )
    seen = []
    monkeypatch.setattr(single, "run_stage", lambda kind, config, parents, out, _: seen.append(config.seed))
    line = "sft m --data d --out o --recipe own.toml"
    for options in ("--table a", "--table=b", "--table b --seed 3"):
        assert main(f"{line} {options}".split()) == 0
    assert seen == [1, 2, 3]
    for said, told in (
        (line, "own.toml has several tables of kind sft: give --table, one of a, b"),
        (f"{line} --table c", "unknown table of kind sft in own.toml: 'c', known: a, b"),
        ("sft m --data d --out o --table a", "--table a is a table of a recipe: give --recipe too"),
    ):
        assert main(said.split()) == 1
        assert capsys.readouterr().err == f"herd: {told}\n"


def test_the_settings_of_a_recipes_tables_are_options_of_herd_run(monkeypatch: pytest.MonkeyPatch):
    Path("own.toml").write_text(
        '[data]\n[model]\nseed = 7\n[pretrain]\ncontext = 99\n[stage.sft-code]\nkind = "sft"\nseed = 3\n'
    )
    seen: list[dict[str, object]] = []
    monkeypatch.setattr("herd.commands.run.run_recipe", lambda nodes, folder, do: seen.append(nodes))
    options = "--model.num-experts 16 --model.vision.dim 64 --sft-code.num-tokens 2K --pretrain.optimizer.lr-scale 0.5"
    assert main(f"run own.toml {options}".split()) == 0
    configs = {name: node.config for name, node in seen[0].items()}
    assert list(configs) == ["data", "model", "pretrain", "sft-code", "report"]
    assert (configs["model"].num_experts, configs["model"].vision.dim, configs["model"].seed) == (16, 64, 7)
    assert (configs["sft-code"].num_tokens, configs["sft-code"].seed) == (2048, 3)
    assert (configs["pretrain"].optimizer.lr_scale, configs["pretrain"].context) == (0.5, 99)
    # An option that stands before the recipe is understood, but for those of its tables.
    assert main(["run", "--restart", "own.toml"]) == 0
    assert {name: node.config for name, node in seen[1].items()}["model"].seed == 7
    assert main(["run", "own.toml", "--model.num-expert", "16"]) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("vision m --data d --out o --preset tiny", "--preset is now --preset of herd model"),
        ("vision m --data d --out o --likeness=0.5", "--likeness is now --qk-init-correlation of herd model"),
        ("run tiny --vision.preset tiny", "--vision.preset is now --model.preset"),
        ("run tiny --vision.sharpness 3", "--vision.sharpness is now --vision.logit-scale"),
        ("sft m --data d --out o --guard.sigmas 8", "--guard.sigmas is now --loss-spikes.sigmas"),
        ("chat m --guess 4", "--guess is now --num-speculative-tokens"),
        ("serve m --slots=8", "--slots is now --max-num-seqs"),
        ("generate m p --out o --draft d", "--draft is now --draft-model"),
        (
            "run tiny --evaluate.reasons x",
            "--evaluate.reasons was removed, the report judges nothing: `herd bench tiny RUN` lists a run's targets",
        ),
    ],
)
def test_an_option_of_an_earlier_version_is_refused_with_its_new_name(
    line: str, told: str, capsys: pytest.CaptureFixture[str]
):
    assert main(line.split()) == 2
    assert capsys.readouterr().err == f"herd: {told}\n"


def test_every_preset_is_listed_where_a_model_begins(capsys: pytest.CaptureFixture[str]):
    for line in ("model --help", "run tiny --help"):
        assert main(line.split()) == 0
        out = re.sub(r"[\s│]", "", capsys.readouterr().out)
        assert ",".join(PRESETS) in out


@pytest.mark.parametrize(
    "line",
    [
        "report runs/a --against runs/b --against runs/c",
        "pretrain m --data d --out o --num-tokens 5 --num_tokens=6",
        "generate m p --out o --stop a --stop b",
    ],
)
def test_an_option_given_twice_is_refused(line: str, capsys: pytest.CaptureFixture[str]):
    assert main(line.split()) == 2
    assert "is given twice: give it once, with all its values behind it" in capsys.readouterr().err


def test_every_whole_number_may_be_written_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "200")
    seen = []
    monkeypatch.setattr(single, "run_stage", lambda kind, config, parents, out, _: seen.append(config))
    line = (
        "midtrain m --data d --out o --num-tokens 200K --lengths 1K 2K --batch-tokens 8K --checkpoint.keep 3 --seed 0"
    )
    assert main(line.split()) == 0
    [config] = seen
    assert (config.num_tokens, config.lengths, config.batch_tokens, config.checkpoint.keep) == (
        204_800,
        (1024, 2048),
        8192,
        3,
    )
    capsys.readouterr()
    assert main(["plan", "tiny", "--context", "1K", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 1024
    assert main(line.replace("200K", "200Q").split()) == 2
    assert "'200Q' is not a whole number: write it as 8192" in capsys.readouterr().err


def test_a_stage_command_never_overwrites_a_folder(capsys: pytest.CaptureFixture[str]):
    Path("o").mkdir()
    assert main(["pretrain", "m", "--data", "d", "--out", "o"]) == 1
    assert capsys.readouterr().err == "herd: o is there already: give another --out, or remove it first\n"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "fail", Command(summary="Fail", example="herd fail", does=fail))


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (HerdError("top_k=9 is more than 8"), 1, "top_k=9 is more than 8"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "the disk is full (a/b): free some space"),
        (RuntimeError("write failed: No space left on device (os error 28)"), 1, "the disk is full: free some"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "permission denied (/x): choose a folder of yours",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1, "no such file or directory (x)"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyError("lost\nagain"), 1, "KeyError: 'lost\\nagain' (a bug of Herd; the traceback is in "),
    ],
)
def test_every_failure_is_one_line_and_its_traceback_is_in_the_cache(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failing(monkeypatch, error)
    assert main(["fail"]) == code
    out, err = capsys.readouterr()
    assert err.startswith(f"herd: {told}")
    assert (out, err.count("\n")) == ("", 1)
    log = Path("cache/logs/herd.log").read_text()
    assert "Traceback" in log
    assert type(error).__name__ in log


def test_only_a_bug_leaves_a_log_beside_the_users_files(monkeypatch: pytest.MonkeyPatch):
    for error, left in (HerdError("top_k=9 is more than 8"), False), (MemoryError(), False), (KeyError("x"), True):

        def fail(error: BaseException = error) -> None:
            traceback_log.set(Path("out.log"))
            raise error

        monkeypatch.setitem(COMMANDS, "fail", Command(summary="Fail", example="herd fail", does=fail))
        assert main(["fail"]) == 1
        assert Path("out.log").exists() == left


def test_where_no_log_can_be_written_the_line_reports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("cache").write_text("a file where the folder should be")
    failing(monkeypatch, KeyError("lost"))
    assert main(["fail"]) == 1
    assert "the traceback cannot be written to" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    lines: int = 2


def a_stage(config: Settings, out: Path) -> Path:
    stage = Stage("data", out, config=config, parents={})
    for line in range(config.lines):
        print(f"line {line}")
    if config.lines == 0:
        raise ZeroDivisionError("lines / 0")
    (stage.work / "begun").touch()
    if config.lines < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.lines > 9:
        time.sleep(60)
    return stage.finish()


@pytest.fixture
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stage("data", config="test_cli:Settings", function="test_cli:a_stage", writes="data")
    monkeypatch.setitem(STAGES, "data", kind)
    monkeypatch.setitem(COMMANDS, "data build", single.stage_command(kind))
    Path("own.toml").write_text("[data]\n")


@pytest.mark.usefixtures("one_stage")
def test_a_run_prints_of_each_stage_whether_it_was_reused_and_keeps_a_log(capfd: pytest.CaptureFixture[str]):
    assert main(["run", "own.toml"]) == 0
    first = capfd.readouterr().out
    assert re.search(r"^data      done \(\d+ s\)$", first, re.M)
    assert re.search(r"^report    done \(\d+ s\)$", first, re.M)
    assert "line 1" in first
    assert re.search(r"wrote runs/own in \d+ s\n$", first)
    assert main(["run", "own.toml"]) == 0
    second = capfd.readouterr().out
    assert re.search(r"^data      reused \(\d+ s\)$", second, re.M)
    assert re.search(r"^report    reused \(\d+ s\)$", second, re.M)
    log = Path("runs/own/run.log").read_text()
    assert log.count("run own.toml") == 2
    assert "line 1" in log
    Path("own.toml").write_text("[data]\nlines = 3\n")
    assert main(["run", "own.toml", "--out", "other"]) == 0
    assert Path("other/data/herd.json").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_stage_that_fails_is_one_line_and_the_runs_log_has_the_rest(capfd: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nlines = 0\n")
    assert main(["run", "own.toml"]) == 1
    told = "herd: ZeroDivisionError: lines / 0 (a bug of Herd; the traceback is in runs/own/run.log)\n"
    assert capfd.readouterr().err == told
    log = Path("runs/own/run.log").read_text()
    assert "in a_stage" in log
    assert log.count("Traceback") == 1
    assert not Path("runs/own/data").exists()
    assert main(["data", "build", "--recipe", "own.toml", "--out", "x/data"]) == 1
    assert "in a_stage" in Path("x/data.log").read_text()


@pytest.mark.usefixtures("one_stage")
def test_a_run_has_its_stages_in_processes_of_their_own(capfd: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nlines = -1\n")
    assert main(["run", "own.toml"]) == 1
    told = "most likely out of memory: close other programs, then re-run the same command to resume"
    assert capfd.readouterr().err == f"herd: data was ended by SIGKILL, {told}\n"
    assert not Path("runs/own/data").exists()
    assert Path("runs/own/data.partial/begun").exists()


LONG_RUN = """
import sys
from herd import cli
from herd.commands.stages import STAGES, stage
STAGES["data"] = stage("data", config="test_cli:Settings", function="test_cli:a_stage", writes="data")
sys.exit(cli.main(["run", "own.toml"]))
"""


def test_ctrl_c_stops_the_stage_in_work_and_is_one_line():
    Path("own.toml").write_text("[data]\nlines = 10\n")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not Path("runs/own/data.partial/begun").exists():
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does
    out, err = run.communicate(timeout=20)
    kept = "what was finished is in runs/own/data.partial: re-run the same command to resume"
    assert (run.returncode, err) == (130, f"herd: stopped; {kept}\n")
    assert out.endswith("line 9\n")
    log = Path("runs/own/run.log").read_text()
    assert "Traceback" not in log
    assert f"herd: stopped; {kept}" in log
    assert Path("runs/own/data.partial/begun").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_stage_command_ends_by_naming_what_it_wrote(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "build", "--out", "x/data", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "line 0\nwrote x/data\n"
    assert Path("x/data/herd.json").exists()


@pytest.mark.usefixtures("one_stage")
def test_a_mistake_in_the_recipe_is_reported_before_anything_is_written(capsys: pytest.CaptureFixture[str]):
    Path("own.toml").write_text("[data]\nline = 0\n")
    assert main(["run", "own.toml"]) == 1
    assert "'line', did you mean 'lines'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "herd", "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    import herd

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"herd {herd.__version__}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_allocator_is_set_once_and_a_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch):
    code = "import os, sys; from herd.cli import tune_allocator; tune_allocator(); print(os.environ, *sys.argv[1:])"
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    run = python(code, "two words", "--more")
    assert "'MALLOC_MMAP_MAX_': '0'" in run.stdout
    assert run.stdout.endswith("two words --more\n")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")
    run = python(code)
    assert "'MALLOC_TOP_PAD_': '5'" in run.stdout
    assert "MALLOC_MMAP_MAX_" not in run.stdout


def test_an_unforeseen_error_has_no_line_of_its_own():
    assert in_one_line(ValueError("x")) is None


@pytest.mark.parametrize("words", [["serve", "FOLDER"], ["vision", "FOLDER", "--data", "FOLDER", "--out", "OUT"]])
def test_device_is_an_option_of_what_computes_and_the_variable_of_its_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(VARIABLE, "cpu")
    seen: list[str] = []

    def note(*_: object, **__: object) -> None:
        seen.append(os.environ[VARIABLE])

    monkeypatch.setattr("herd.serve.api.serve", note)
    monkeypatch.setattr("herd.commands.single.run_stage", note)
    args = [str(tmp_path / word.lower()) if word.isupper() else word for word in words]
    assert main([*args, "--device", "mps"]) == 0
    monkeypatch.setenv(VARIABLE, "cuda")
    assert main(args) == 0
    assert seen == ["mps", "cuda"]
    assert main([*args, "--device", "gpu"]) == 2
    assert "--device" in capsys.readouterr().err
