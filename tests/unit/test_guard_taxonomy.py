"""Policies: what is in them, and what is refused."""

import re

import pytest

from herd.errors import HerdError
from herd.guard.taxonomy import HAZARDS, Category, Taxonomy, read_policy

OWN = Category(code="S15", name="Competitors", description="Recommends another shop.")


def test_there_are_the_fourteen_categories_in_their_order():
    assert HAZARDS.codes == tuple(f"S{number}" for number in range(1, 15))
    assert HAZARDS["S9"].name == "Indiscriminate Weapons"


def test_categories_are_excluded_added_and_replaced():
    policy = HAZARDS.exclude(["S12", "S6"]).add([OWN, Category(code="S5", name="Lies", description="Is untrue.")])
    assert policy.codes == ("S1", "S2", "S3", "S4", "S5", "S7", "S8", "S9", "S10", "S11", "S13", "S14", "S15")
    assert policy["S5"].name == "Lies" and HAZARDS["S5"].name == "Defamation"


def test_a_policy_file_says_the_same(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        'exclude = ["S12", "S6"]\n[[category]]\ncode = "S15"\nname = "Competitors"\n'
        'description = "Recommends another shop."\n'
    )
    assert read_policy(path) == HAZARDS.exclude(["S6", "S12"]).add([OWN])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('exclude = ["S77"]', "S77"),
        ('exclude = "S12"', "must be a list of codes"),
        ("excluded = []", "excluded"),
        ("exclude = [", "cannot be read as a policy"),
        ('[[category]]\ncode = "S15"\nname = "Lies"', "needs code, name, description"),
        ('[[category]]\ncode = "lies"\nname = "Lies"\ndescription = "Is untrue."', "must be S1 to S99"),
        ('[[category]]\ncode = "S15"\nname = " "\ndescription = "Is untrue."', "needs a name"),
        ('[[category]]\ncode = "S15"\nname = "L"\ndescription = """a\nb"""', "must be one line"),
        ("exclude = [" + ", ".join(f'"S{number}"' for number in range(1, 15)) + "]", "no category is left"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(HerdError, match=re.escape(says)):
        read_policy(path)


def test_a_code_is_given_once():
    with pytest.raises(HerdError, match="S15 is given to several"):
        Taxonomy((OWN, OWN))
