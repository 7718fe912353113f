"""The two lines: a database and a model of transformers, from an empty folder to equal tokens in another process."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from session_models import random_model
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from vllm_relational.context import DB, ContextError
from vllm_relational.context.errors import UnsupportedModelError
from vllm_relational.context.fingerprint import fingerprint_of_model
from vllm_relational.context.settings import SessionSettings
from vllm_relational.context.text import SessionMisuseError

IDS = torch.randint(1, 199, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def answer(model):
    """What the model says without a session."""
    model.set_attn_implementation("sdpa")
    return generated(model, IDS)


@pytest.fixture
def db(tmp_path):
    return DB(tmp_path / "db")


def generated(model, ids, session=None, new=6):
    with torch.no_grad():
        return model.generate(ids, past_key_values=session, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]


def ask(db, model, ids=IDS):
    """The new tokens, the session, and how many of the ids were computed."""
    session, remaining = db.create_session(ids, model)
    model.set_attn_implementation("context")
    return generated(model, remaining, session), session, remaining.shape[1]


def test_what_one_stored_the_next_does_not_compute(db, model, answer):
    said, session, computed = ask(db, model)
    assert computed == 90 and torch.equal(said, answer)
    context = db.store(session, "text")
    again, session, computed = ask(DB(db.path), model)
    assert computed == 1 and torch.equal(again, answer)
    assert db.list()[0].num_tokens == 90 + 5  # the last token that it said was not given to it
    assert db.store(session) == context


def test_a_prompt_may_leave_a_stored_context_anywhere(db, model):
    db.store(ask(db, model)[1])
    for shared in (1, 40, 89):
        ids = IDS.clone()
        ids[0, shared] = ids[0, shared] % 198 + 1
        model.set_attn_implementation("sdpa")
        expected = generated(model, ids)
        said, _, computed = ask(db, model, ids)
        assert computed == 90 - shared and torch.equal(said, expected)


@pytest.mark.parametrize(
    "given", [IDS, IDS[0], IDS[0].tolist(), IDS.tolist(), IDS.numpy(), IDS[0].numpy().astype(np.int32)], ids=type
)
def test_ids_in_any_form(db, model, given):
    assert db.create_session(given, model)[1].tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("given", "why"),
    [([], "no token"), ([1, -1], "-1"), ([199], "199 tokens"), (IDS.repeat(2, 1), "one"), ("a", "text")],
)
def test_what_is_no_prompt_of_the_model(db, model, given, why):
    with pytest.raises(ContextError, match=why):
        db.create_session(given, model)


@pytest.mark.parametrize(
    "other", [{"seed": 5}, {"dtype": torch.bfloat16}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}]
)
def test_another_model_finds_nothing(db, model, other):
    db.store(ask(db, model)[1])
    assert db.create_session(IDS, random_model(**other))[1].shape[1] == 90


def test_models_whose_keys_depend_on_the_length_are_refused(db):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        db.create_session(IDS, random_model(rope_parameters=rope))


def test_a_damaged_context_is_computed_again(db, model, answer):
    context = db.store(ask(db, model)[1])
    path = next(db.path.glob(f"*/{context}/layer_00.kv"))
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged in MiB 0"):
        said, session, computed = ask(DB(db.path), model)
    assert computed == 90 and torch.equal(said, answer)
    assert DB(db.path).store(session) == context
    assert ask(DB(db.path), model)[2] == 1


def test_a_context_that_is_deleted_while_a_session_uses_it(db, model, answer):
    context = db.store(ask(db, model)[1])
    session, remaining = db.create_session(IDS, model)
    db.delete(context)
    assert torch.equal(generated(model, remaining, session), answer)
    assert db.store(session) and ask(db, model)[2] == 1


def test_a_copy_of_a_session_can_be_stored(db, model):
    _, session, _ = ask(db, model)
    assert db.store(copy.deepcopy(session)) == db.store(session)


def test_several_rows_cannot_be_stored(db, model):
    session, remaining = db.create_session(IDS, model)
    generated(model, remaining.repeat(2, 1), session)
    with pytest.raises(ContextError, match="2 rows"):
        db.store(session)


def test_what_sparse_attention_computed_is_not_stored_as_if_it_were_exact(db, model):
    db.store(ask(db, model)[1])
    settings = SessionSettings(method="topk", top_tokens=5, first=4, last=8, dense_below=10, dense_layers=0)
    session, remaining = db.create_session(IDS, model, settings)
    model.set_attn_implementation("context")
    generated(model, remaining, session)
    with pytest.raises(ContextError, match="sparse attention"):
        db.store(session)


def test_a_session_of_somebody_else_cannot_be_stored(db):
    with pytest.raises(ContextError, match="create_session"):
        db.store(object())


def test_a_transformers_cache_is_imported_for_the_model(db, model, answer):
    from transformers import DynamicCache

    cache = DynamicCache()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    db.import_(IDS, cache, model, name="text")
    said, _, computed = ask(db, model)
    assert computed == 1 and torch.equal(said, answer)


def test_nothing_changes_for_others_who_hold_the_files(db, model):
    """New tokens stay in the session: the files are as they were."""
    context = db.store(ask(db, model)[1])
    before = {path: path.read_bytes() for path in db.path.glob(f"*/{context}/*")}
    ask(db, model)
    assert {path: path.read_bytes() for path in before} == before


CHANGES = {
    "in place": lambda weight: weight.mul_(2),
    "another file": lambda weight: weight.copy_(torch.ones_like(weight)),
    "through data": lambda weight: weight.data.mul_(2),
}


@pytest.mark.parametrize("change", ["in place", "another file"])
def test_weights_that_change_under_a_session_end_it(db, change):
    """Else it goes on with keys of two models."""
    changed = random_model()
    _, session, _ = ask(db, changed)
    with torch.no_grad():
        CHANGES[change](changed.model.layers[0].self_attn.k_proj.weight)
    with pytest.raises(SessionMisuseError, match="was changed since"):
        changed(torch.tensor([[5]]), past_key_values=session)


@pytest.mark.parametrize("change", CHANGES)
def test_a_session_is_not_stored_as_that_of_the_weights_before(db, change):
    changed = random_model()
    session, remaining = db.create_session(IDS, changed)
    changed.set_attn_implementation("context")
    with torch.no_grad():
        CHANGES[change](changed.model.layers[0].self_attn.k_proj.weight)
    with pytest.raises(ContextError, match="was changed since"), torch.no_grad():
        changed(remaining, past_key_values=session)
        db.store(session)
    assert not db.list()


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 199, "ffn_dim": 32}


def test_a_model_whose_head_calls_the_decoder_within_its_base_model(db):
    """The hook must be on the module that is called: OPT's head passes its base model by."""
    config = OPTConfig(**TINY, word_embed_proj_dim=32, init_std=0.3, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    given = OPTForCausalLM(config).eval()
    given.set_attn_implementation("sdpa")
    expected = generated(given, IDS)
    db.store(ask(db, given, IDS[:, :60])[1])
    answer, _, computed = ask(db, given)
    assert computed < 60 and torch.equal(answer, expected)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: FalconForCausalLM(FalconConfig(**TINY)), "attention in code of its own"),
        (lambda: RobertaForCausalLM(RobertaConfig(**TINY, is_decoder=True, intermediate_size=32)), "padding token"),
    ],
    ids=["own attention", "positions from padding"],
)
def test_models_that_cannot_use_a_session_are_refused(db, made, why):
    with pytest.raises(UnsupportedModelError, match=why):
        db.create_session(IDS, made())


def cache_of(model, ids=IDS):
    from transformers import DynamicCache

    cache = DynamicCache()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


NOT_THE_MODEL_S = {
    "another dtype": lambda kv: [(keys.half(), values.half()) for keys, values in kv],
    "a layer less": lambda kv: kv[:1],
    "a layer more": lambda kv: [*kv, kv[0]],
}


@pytest.mark.parametrize("change", NOT_THE_MODEL_S)
def test_keys_that_cannot_be_the_model_s_are_not_imported_for_it(db, model, change):
    with pytest.raises(ContextError, match="the model has 2 in float32"):
        db.import_(IDS, NOT_THE_MODEL_S[change](cache_of(model)), model)


@pytest.mark.parametrize("change", NOT_THE_MODEL_S)
def test_nor_used_where_they_were_imported_under_its_fingerprint(db, model, change):
    stored = db.import_(IDS, NOT_THE_MODEL_S[change](cache_of(model)), fingerprint_of_model(model))
    with pytest.raises(ContextError, match=f"context {stored} .delete it. holds"):
        db.create_session(IDS, model)


def test_taking_nothing_away_changes_nothing(db, model, answer):
    db.store(ask(db, model, IDS[:, :60])[1])
    session, remaining = db.create_session(IDS, model)
    session.crop(0)
    model.set_attn_implementation("context")
    assert torch.equal(generated(model, remaining, session), answer)
