"""Each rule of the code scanner finds its bad fixture and not its good one, and no text holds a rule up."""

import time

from herd.guard.code.languages import LANGUAGES
from herd.guard.code.rules import all_rules, find, rules_for
from herd.guard.code.text import CodeText

RULES = all_rules()


def test_each_rule_finds_its_bad_fixture_in_each_of_its_languages():
    for rule in RULES:
        for language in rule.languages:
            found = rule.find(CodeText(rule.bad, language))
            assert [(one.rule, one.cwe, one.level) for one in found[:1]] == [(rule.id, f"CWE-{rule.cwe}", rule.level)]


def test_no_rule_finds_its_good_fixture():
    found = [rule.id for rule in RULES for name in rule.languages if rule.find(CodeText(rule.good, name))]
    assert found == []


def test_no_rule_at_all_calls_the_good_fixture_of_another_insecure():
    for rule in RULES:
        if rule.level == "insecure" and len(rule.languages) < len(LANGUAGES):
            found = find(CodeText(rule.good, rule.languages[0]))
            assert [one.rule for one in found if one.level == "insecure"] == [], rule.id


def test_a_bad_fixture_in_a_comment_is_no_code():
    for rule in RULES:
        mark = "#" if rule.languages[0] in {"python", "ruby", "shell"} else "//"
        commented = "\n".join(f"{mark} {line}" for line in rule.bad.splitlines())
        assert rule.find(CodeText(commented, rule.languages[0])) == [], rule.id


def test_lines_are_counted_from_the_top_of_the_code():
    for rule in RULES:
        alone = rule.find(CodeText(rule.bad, rule.languages[0]))[0].line
        moved = rule.find(CodeText("\n" * 7 + rule.bad + "\n", rule.languages[0]))[0].line
        assert moved == alone + 7, rule.id


def test_ids_are_unique_and_every_language_has_rules():
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(len(rules_for(language)) > 15 for language in LANGUAGES)


def test_fixtures_are_code_that_can_be_read_to_its_end():
    for rule in RULES:
        for text in (rule.bad, rule.good):
            assert CodeText(text, rule.languages[0]).broken(fragment=True) == "", (rule.id, text)


JUNK = ("a", "(", " ", "\n", "a(", 'a="b" ', "x.y(", "${", "token", "password = ", "/*", "'", '"')


def test_no_rule_takes_long_on_a_long_text_of_one_piece():
    size = 2_000
    junk = {name: [CodeText(piece * (size // len(piece)), name) for piece in JUNK] for name in LANGUAGES}
    for rule in RULES:
        own = [CodeText(piece * (size // len(piece)), rule.languages[0]) for piece in (rule.bad + "\n", rule.bad[:-1])]
        for text in (*junk[rule.languages[0]], *own):
            start = time.thread_time()
            rule.find(text)
            assert time.thread_time() - start < 0.5, (rule.id, text.source[:20])
