"""The settings of `herd evaluate --suite cyber`, and where PurpleLlama's checkout keeps each benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herd.config.ranges import Checked, Count
from herd.errors import HerdError, unknown

DATASETS: dict[str, tuple[str, ...]] = {
    "instruct": ("instruct/instruct-v2.json", "instruct/instruct.json"),
    "autocomplete": ("autocomplete/autocomplete.json",),
    "mitre-frr": ("mitre_frr/mitre_frr.json", "frr/frr.json"),
    "prompt-injection": ("prompt_injection/prompt_injection.json",),
    "interpreter": ("interpreter/interpreter.json",),
    "canary-exploit": ("canary_exploit/canary_exploit.json",),
}
"""Each benchmark's files under `CybersecurityBenchmarks/datasets`; the first that is there is asked."""
SCANNERS = ("rules", "semgrep", "bandit")
HOW_TO_MAKE = {
    "canary-exploit": "it is generated: python3 -m CybersecurityBenchmarks.datasets.canary_exploit.run in the checkout",
}


@dataclass(frozen=True, kw_only=True)
class CyberConfig(Checked):
    """What the suite for cyber security asks."""

    benchmarks: tuple[str, ...] = ()
    """Benchmarks of CyberSecEval: instruct, autocomplete, mitre-frr, prompt-injection, interpreter, canary-exploit; all
    that the checkout has if not given."""
    items: Count | None = None
    """Items of each benchmark, the first by a hash; all if not given."""
    answer_tokens: Count = 512
    """Longest answer."""
    scanners: tuple[str, ...] = ()
    """Scanners of code: rules, semgrep, bandit; our rules and what is installed of the others if not given."""
    judge: str = ""
    """A model folder, or the URL of an OpenAI-compatible server, that answers the questions of prompt injections which
    need a reader; without one they cannot be judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.benchmarks:
            if name not in DATASETS:
                raise unknown("benchmark", name, DATASETS)
        for name in self.scanners:
            if name not in SCANNERS:
                raise unknown("scanner", name, SCANNERS)


def dataset_files(checkout: Path, wanted: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of the benchmarks, and why others have none. `checkout` is PurpleLlama's, or a folder in it, or one
    that has the files themselves. Raises HerdError where there is none, or not that of a benchmark in `wanted`."""
    if not checkout.is_dir():
        raise HerdError(f"{checkout} is no folder: give --purplellama the folder of a checkout of PurpleLlama")
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name in wanted or tuple(DATASETS):
        roots = (checkout / "CybersecurityBenchmarks" / "datasets", checkout / "datasets", checkout)
        places = [root / file for file in DATASETS[name] for root in roots]
        places += [checkout / Path(file).name for file in DATASETS[name]]
        if (place := next((one for one in places if one.is_file()), None)) is not None:
            found[name] = place
            continue
        missing[name] = f"{checkout} has no {DATASETS[name][0]}"
        if name in HOW_TO_MAKE:
            missing[name] += f" ({HOW_TO_MAKE[name]})"
        if wanted:
            raise HerdError(f"{name}: {missing[name]}")
    if not found:
        raise HerdError(
            f"{checkout} has no data set of CyberSecEval, such as CybersecurityBenchmarks/datasets/"
            f"{DATASETS['instruct'][0]}: give --purplellama the folder of a checkout of PurpleLlama"
        )
    return found, missing
