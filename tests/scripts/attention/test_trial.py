"""Words for ways to attend: read, refused."""

import math

import pytest
from attention import rules, selection
from attention.trial import RULES, read_trial

from vllm_relational.records import RelationalError
from vllm_relational.sparse import naive

EXAMPLES = {
    "dense": selection.ByProducts(naive.Dense()),
    "window+tail": selection.ByProducts(rules.WindowOnly()),
    "dipr:4e-3": selection.ByProducts(naive.Dipr(-math.log(4e-3) * 8)),
    "dipr:8/L+est": selection.ByProducts(naive.Dipr(-math.log(8 / 1000) * 8)),
    "recent:2048": selection.Recent(2048),
    "top:500": selection.ByProducts(rules.TopK(500)),
    "mass:0.95": selection.ByProducts(rules.TopP(0.95)),
    "scan:4e-3@3/64": selection.Scan(-math.log(4e-3) * 8, selection.Index(3, 64)),
    "scan_window:4e-3": selection.Scan(-math.log(4e-3) * 8, maximum="window"),
    "scan_global:4e-3": selection.Scan(-math.log(4e-3) * 8, maximum="global"),
    "pages:2048@4/32+est": selection.TopPages(2048, selection.Index(4, 32)),
    "pages_middle:64": selection.TopPages(64, spread=0.0),
    "pages_box:64": selection.TopPages(64, spread=1.0),
    "estimated:4e-3": selection.Estimated(-math.log(4e-3) * 8),
}


@pytest.mark.parametrize("word", EXAMPLES)
def test_a_word_names_a_selection(word):
    assert read_trial(word).select(1 / 8, 1000) == EXAMPLES[word]


def test_every_rule_has_an_example():
    assert {read_trial(word).rule for word in EXAMPLES} == set(RULES)


def test_what_follows_the_rule():
    trial = read_trial("scan:1e-3@8/32+est+head")
    assert (trial.index, trial.tail, trial.by_group) == (selection.Index(8, 32), "index", False)
    assert (read_trial("window+tail").tail, read_trial("window").tail) == ("exact", "none")
    assert read_trial("dipr:9/L").alpha(3) == 1


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("dpr:4e-3", "no way to attend"),
        ("dipr", "needs a value"),
        ("dense:3", "takes no value"),
        ("top:2.5", "whole number"),
        ("recent:0.5", "whole number"),
        ("top:8/L", "whole number"),
        ("dipr:1.5", "share above 0"),
        ("dipr:0", "share above 0"),
        ("top:inf", "whole number"),
        ("dipr:x", "share above 0"),
        ("mass:nan", "share above 0"),
        ("scan:4e-3@9/16", "1 to 8 bits"),
        ("scan:4e-3@4/48", "groups of"),
        ("scan:4e-3@4/0", "groups of"),
        ("dipr:4e-3+tail+est", "no way to attend"),
    ],
)
def test_a_wrong_word_is_refused_with_the_reason(word, why):
    with pytest.raises(RelationalError, match=why):
        read_trial(word)
