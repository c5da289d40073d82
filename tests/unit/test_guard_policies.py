"""The policies that a guard is trained under, and what violates them."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from herd.data.tasks.safety.items import (
    invented_topics,
    make_item,
    topics,
)
from herd.guard.batches import pictured
from herd.guard.measure import invented_rates
from herd.guard.policies import make_policy, names_topics, violated
from herd.guard.prompt import frame, text_part
from herd.guard.taxonomy import HAZARDS, Category


def words(text):
    return set(re.findall(r"[\w'-]+", text.lower()))


def test_half_of_the_requests_are_twins_and_codes_follow_the_policy():
    items = [make_item(0, "train", number) for number in range(3000)]
    kinds = {kind: sum(one.kind == kind for one in items) for kind in ("request", "twin", "reply", "refusal")}
    assert abs(kinds["request"] - kinds["twin"]) < 150
    assert all(not one.codes for one in items if one.kind in ("twin", "refusal", "harmless", "chat"))
    unsafe = next(one for one in items if one.codes == ("S1",))
    assert violated(unsafe.codes, HAZARDS, {}) == ("S1",) and violated(unsafe.codes, HAZARDS.exclude(["S1"]), {}) == ()
    policy = HAZARDS.add([Category(code="S21", name="Music", description="Is about songs.")])
    assert violated(("Music",), policy, {"Music": "S21"}) == ("S21",)
    assert violated(("Music",), policy, {}) == ()
    assert violated(("S1", "S2"), policy.exclude(["S1"]), {"S1": "S21"}) == ("S2", "S21")


def test_what_drawings_violate_follows_the_policy():
    views = np.random.default_rng(0)
    shown = SimpleNamespace(codes=("S2", "S1"), parts=lambda views: [text_part("x")])
    assert pictured(shown, HAZARDS, {}, views).codes == ("S1", "S2")
    assert pictured(shown, HAZARDS.exclude(["S1"]), {}, views).codes == ("S2",)
    other = replace(HAZARDS["S1"], code="S30")
    assert pictured(shown, HAZARDS.exclude(["S1"]).add([other]), {"S1": "S30"}, views).codes == ("S2", "S30")


def test_policies_vary_and_name_only_topics_of_their_split():
    drawn = [make_policy(0, "train", number) for number in range(300)]
    assert 120 < sum(policy == HAZARDS for policy, _ in drawn) < 180
    names = {one.names[0] for one in topics("train")}
    of_topics = [(policy, named) for policy, named in drawn if names_topics(named)]
    assert 60 < len(of_topics) < 120 and all(set(named) <= names for _, named in of_topics)
    for policy, named in drawn:
        assert set(named.values()) == set(policy.codes) - set(HAZARDS.codes)


def test_further_categories_are_mostly_numbered_from_s15_on():
    drawn = [named for number in range(400) if (named := make_policy(0, "train", number)[1])]
    usual = [list(named.values()) == [f"S{15 + at}" for at in range(len(named))] for named in drawn]
    assert 0.6 < sum(usual) / len(usual) < 0.9


def test_a_category_that_was_invented_later_is_asked_for_beside_the_hazards_and_the_policy_stays():
    class Reads:
        """Flags what it finds in the actions of the topic that S15 names."""

        policy = HAZARDS

        def judge_all(self, conversations):
            assert self.policy.codes == (*HAZARDS.codes, "S15")
            (topic,) = [one for one in invented_topics() if one.names[0] == self.policy["S15"].name]
            said = [messages[-1]["content"] for messages in conversations]
            found = [any(words(action) <= words(text) for action in topic.actions) for text in said]
            # One word of a text may have been misspelt on purpose.
            return [SimpleNamespace(unsafe=one, categories=("S15",) if one else ()) for one in found]

    guard = Reads()
    found = invented_rates(guard, 0, 110)
    assert found["flagged"]["count"] + found["others"]["count"] == 220
    assert abs(found["flagged"]["count"] - found["others"]["count"]) <= len(invented_topics())
    assert found["flagged"]["share"] == found["named"]["share"] > 0.85 and found["others"]["hits"] == 0
    assert guard.policy is HAZARDS


def test_a_hazard_of_another_number_is_the_same_hazard_and_has_its_old_number_no_longer():
    drawn = [make_policy(0, "train", number) for number in range(300)]
    other = [(policy, named) for policy, named in drawn if named and not names_topics(named)]
    assert len(other) > 30
    for policy, named in other:
        assert not set(named) & set(policy.codes) and len(policy.codes) < len(HAZARDS.codes) + 1
        for code, new in named.items():
            assert (policy[new].name, policy[new].description) == (HAZARDS[code].name, HAZARDS[code].description)
            assert violated((code,), policy, named) == (new,)
            assert f"{new}: {HAZARDS[code].name}. {HAZARDS[code].description}" in frame("user", policy, "short")[0]
