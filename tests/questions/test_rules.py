"""The rules of wording obey their own examples, and no two of them claim one example for different things."""

import pytest

from pipeline.questions.locator import PLANS
from pipeline.questions.wordings import Rule, rules
from pipeline.training.router import HELD_OUT, read_table

EXAMPLES = [(rule, text) for rule in rules() for text in rule.yes]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.pattern.pattern[:40])
def test_a_rule_obeys_its_examples(rule: Rule):
    assert rule.yes and rule.no, "both sides are to be shown"
    assert [text for text in rule.yes if not rule.claims(text)] == []
    assert [text for text in rule.no if rule.claims(text)] == []


@pytest.mark.parametrize(("rule", "text"), EXAMPLES, ids=[text for _, text in EXAMPLES])
def test_no_two_rules_claim_one_example_differently(rule: Rule, text: str):
    claiming = [other for other in rules() if other.claims(text)]
    assert len({other.kind for other in claiming if other.kind}) <= 1
    assert len({other.plan for other in claiming if other.plan}) <= 1


def test_rules_name_kinds_and_plans_that_there_are():
    kinds = {kind for wording in read_table() for kind in wording.kinds}
    for rule in rules():
        assert rule.kind or rule.plan
        assert rule.kind is None or rule.kind in kinds
        assert rule.plan is None or rule.plan in PLANS


def test_rules_are_seldom_wrong_about_the_wordings_of_other_people():
    """Of the wordings of the table that a rule claims, at most one in twenty-five is of another kind."""
    claimed = [
        (w, {r.kind for r in rules() if r.kind and r.claims(w.text)}) for w in read_table() if w.mood not in HELD_OUT
    ]
    claimed = [(w, kinds) for w, kinds in claimed if kinds]
    wrong = [w.text for w, kinds in claimed if not kinds & set(w.kinds)]
    assert len(claimed) > 300 and len(wrong) * 25 <= len(claimed), wrong
