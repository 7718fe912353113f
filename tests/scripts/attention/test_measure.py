"""Measuring on a model: replaced attention equals the model's own, and numbers mean what they say."""

import pytest
import torch
from attention import measure
from attention.measure import STATISTICS, Observer, Prefilled
from attention.trial import read_trial

from vllm_relational.sparse.naive import Window

WINDOW = Window(sinks=16, recent=48)
QUERIES = 21


def run(model, tokens, *words, dense_layers=1):
    trials = [read_trial(word) for word in words]
    return list(measure.measure(model, tokens, trials, window=WINDOW, dense_layers=dense_layers, num_queries=QUERIES))


def test_dense_is_the_models_own_attention(model, tokens):
    with torch.inference_mode():
        right = model(tokens[None]).logits[0, -QUERIES:]
    found = Prefilled(model, tokens, QUERIES).run(Observer(measure.DENSE, WINDOW, 0))
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_the_prefix_is_the_same_for_every_run(model, tokens):
    text = Prefilled(model, tokens, QUERIES)
    before = text.run(Observer(measure.DENSE, WINDOW, 0))
    text.run(Observer(read_trial("window"), WINDOW, 0))
    assert torch.equal(before, text.run(Observer(measure.DENSE, WINDOW, 0)))


def test_a_position_is_what_decoding_it_gives(model, tokens):
    """Token by token with the trial gives the logits of the batch of queries."""
    trial = read_trial("dipr:0.2+tail")
    text = Prefilled(model, tokens, QUERIES)
    right = text.run(Observer(trial, WINDOW, 1))
    with measure.attention_of(model, Observer(trial, WINDOW, 1)):
        for at in range(QUERIES):
            logits = text._forward(text.tokens[at - QUERIES :][:1])
            torch.testing.assert_close(logits[0], right[at], atol=1e-4, rtol=1e-3)


def test_numbers_mean_what_they_say(model, tokens):
    dense, window, dipr, tail, all_of_it = run(
        model, tokens, "dense", "window", "dipr:0.05", "dipr:0.05+tail", "top:400"
    )
    assert dense.kl.abs().max() < 1e-5 and dense.same_top.all()
    assert dense.over_layers(0) == pytest.approx(dict(zip(STATISTICS, (1, 1, 1, 1, 1, 0), strict=True)), abs=1e-5)
    assert window.over_layers(1)["union"] == 0 and window.kl.mean() > dipr.kl.mean() > 0
    kept = dipr.over_layers(1)
    assert 0 < kept["own"] < kept["union"] < kept["pages"] <= 1 and kept["mass_5th"] <= kept["mass"] < 1
    assert tail.over_layers(1)["error"] < kept["error"] < window.over_layers(1)["error"]
    assert all_of_it.over_layers(1)["union"] == 1 and all_of_it.kl.abs().max() < 1e-5
    assert dense.nll.shape == (QUERIES - 1,) and dense.heads.shape == (3, 6, len(STATISTICS))


def test_first_layers_stay_dense_and_are_reported(model, tokens):
    (everywhere,) = run(model, tokens, "window", dense_layers=3)
    assert everywhere.kl.abs().max() < 1e-5 and everywhere.heads[..., STATISTICS.index("error")].min() > 0


def test_short_texts_are_refused(model, tokens):
    with pytest.raises(ValueError, match="no body"):
        run(model, tokens[:100], "dense")
    with pytest.raises(ValueError, match="more than 21"):
        Prefilled(model, tokens[:21], QUERIES)


def test_record_keeps_what_attention_saw(model, tokens):
    kept = measure.record(model, tokens, [0, 2], QUERIES)
    assert set(kept["layers"]) == {0, 2} and kept["scale"] == pytest.approx(0.25)
    layer = kept["layers"][2]
    assert layer["key"].shape == layer["value"].shape == (2, 333, 16) and layer["query"].shape == (6, QUERIES, 16)
    with pytest.raises(ValueError, match="layers 0 to 2"):
        measure.record(model, tokens, [3], QUERIES)
