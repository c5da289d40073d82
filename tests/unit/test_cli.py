"""herd.cli: the commands, their help and their options."""

import dataclasses
import inspect
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from herd.cli import main
from herd.commands import COMMANDS, single
from herd.commands.command import load_object
from herd.commands.stages import STAGES
from herd.config import PRESETS
from herd.core.device import VARIABLE
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
        monkeypatch.setitem(COMMANDS, name, dataclasses.replace(command, function=done.append))
    else:
        signature = inspect.signature(command.function)

        def function(*args: object, **kwargs: object) -> None:
            done.append(signature.bind(*args, **kwargs))

        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__annotations__ = command.function.__annotations__
        function.__doc__ = command.function.__doc__
        monkeypatch.setitem(COMMANDS, name, dataclasses.replace(command, function=function))
    assert main(shlex.split(command.example)[1:]) == 0
    assert len(done) == 1


@pytest.mark.parametrize("kind", STAGES.values(), ids=lambda kind: kind.name)
def test_each_stage_is_where_the_table_says_and_takes_what_it_is_given(kind: StageKind):
    assert dataclasses.is_dataclass(kind.config())
    kind.config()()  # every field has a default, for the command without --recipe
    [place] = kind.function.args
    parameters = inspect.signature(load_object(place)).parameters
    assert list(parameters)[1:] == (["stages_and_out"] if kind.reads_run else [*kind.reads, "out"])
    keys = {field.name for field in dataclasses.fields(kind.config())}
    assert not (keys - set(kind.names)) & {"kind", *KEYS.values()}  # they would hide what recipes say of the graph


@pytest.mark.parametrize(
    ("args", "reported"),
    [
        (["pretrian"], "unknown command 'pretrian', did you mean 'pretrain'?"),
        (["data", "bild"], "unknown command 'data bild', did you mean 'data build'?"),
        (["data"], "'data' is one of several commands: data build, data fetch, data pairs, data show, data stats"),
        (["--recipe"], "unknown command '--recipe'"),
    ],
)
def test_a_misspelt_command_is_refused_with_the_nearest(
    args: list[str], reported: str, capsys: pytest.CaptureFixture[str]
):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(f"herd: {reported}")


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
    ("line", "reported"),
    [
        ("pretrain m --out o", "--data"),
        ("serve runs/tiny/sft --port eighty", "--port"),
        ("report", "RUN"),
        ("doctor twice", "twice"),
    ],
)
def test_what_lacks_or_has_a_wrong_value_is_refused(line: str, reported: str, capsys: pytest.CaptureFixture[str]):
    assert main(line.split()) == 2
    assert reported.lower() in capsys.readouterr().err.lower()


def test_the_recipe_gives_the_defaults_and_options_override_it(monkeypatch: pytest.MonkeyPatch):
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
    for said, reported in (
        (line, "own.toml has several tables of kind sft: give --table, one of a, b"),
        (f"{line} --table c", "unknown table of kind sft in own.toml: 'c', known: a, b"),
        ("sft m --data d --out o --table a", "--table a is a table of a recipe: give --recipe too"),
    ):
        assert main(said.split()) == 1
        assert capsys.readouterr().err == f"herd: {reported}\n"


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
    ("line", "reported"),
    [
        ("vision m --data d --out o --preset tiny", "--preset is now --preset of herd model"),
        ("vision m --data d --out o --likeness=0.5", "--likeness is now --qk-init-correlation of herd model"),
        ("run tiny --vision.preset tiny", "--vision.preset is now --model.preset"),
        ("run tiny --vision.sharpness 3", "--vision.sharpness is now --vision.logit-scale"),
        ("sft m --data d --out o --guard.sigmas 8", "--guard.sigmas is now --loss-spikes.sigmas"),
        ("sft m --data d --out o --balance-rate 0", "--balance-rate is now --bias-update-rate"),
        ("vision m --data d --out o --optimizer.warmup=0.1", "--optimizer.warmup is now --optimizer.warmup-ratio"),
        ("run tiny --sft.optimizer.warmup 0.1", "--sft.optimizer.warmup is now --sft.optimizer.warmup-ratio"),
        ("model --data d --out o --temperature False", "--temperature is now --temperature-tuning"),
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
    line: str, reported: str, capsys: pytest.CaptureFixture[str]
):
    assert main(line.split()) == 2
    assert capsys.readouterr().err == f"herd: {reported}\n"


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


@pytest.mark.parametrize("words", [["serve", "FOLDER"], ["vision", "FOLDER", "--data", "FOLDER", "--out", "OUT"]])
def test_device_is_an_option_of_what_computes_and_the_variable_of_its_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(VARIABLE, "cpu")
    seen: list[str] = []

    def note(*_: object, **__: object) -> None:
        seen.append(os.environ[VARIABLE])

    monkeypatch.setattr("herd.serve.server.serve", note)
    monkeypatch.setattr("herd.commands.single.run_stage", note)
    args = [str(tmp_path / word.lower()) if word.isupper() else word for word in words]
    assert main([*args, "--device", "mps"]) == 0
    monkeypatch.setenv(VARIABLE, "cuda")
    assert main(args) == 0
    assert seen == ["mps", "cuda"]
    assert main([*args, "--device", "gpu"]) == 2
    assert "--device" in capsys.readouterr().err
