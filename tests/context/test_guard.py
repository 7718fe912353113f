"""Uses of a session that end in wrong tokens with other caches are right here, or an error that says how to do it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from session_models import STORED, TOTAL, Case, make_case, random_model

from vllm_relational.context.errors import ContextError, UnsupportedModelError
from vllm_relational.context.hf import open_session
from vllm_relational.context.text import SessionMisuseError

OTHER = torch.randint(1, 199, (1, TOTAL), generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("context"))


def padded(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)


Use = Callable[[Case, Any, torch.Tensor], torch.Tensor]

MISUSES: dict[str, tuple[str, Use]] = {
    "chunked prefill, whole text": ("prefill_chunk_size", lambda c, s, r: c.generate(c.ids, s, prefill_chunk_size=64)),
    "use_cache=False, whole text": ("use_cache", lambda c, s, r: c.generate(c.ids, s, use_cache=False)),
    "use_cache=False, remaining": ("use_cache", lambda c, s, r: c.generate(r, s, use_cache=False)),
    "another text, whole": ("token 0 differs", lambda c, s, r: c.generate(OTHER, s)),
    "another text, its end": ("another text", lambda c, s, r: c.generate(OTHER[:, STORED:], s)),
    "another text, its end with a mask": (
        "another text",
        lambda c, s, r: c.generate(OTHER[:, STORED:], s, attention_mask=torch.ones(1, TOTAL, dtype=torch.long)),
    ),
    "another text, of another length": ("token 0 differs", lambda c, s, r: c.generate(OTHER[:, :9], s)),
    "a text that the session holds whole": ("nothing comes", lambda c, s, r: c.generate(c.ids[:, :STORED], s)),
    "left padding": ("token 0 differs", lambda c, s, r: c.generate(padded(c.ids), s)),
    "left padding with a mask": (
        "token 0 differs",
        lambda c, s, r: c.generate(padded(c.ids), s, attention_mask=(padded(c.ids) != 0).long()),
    ),
    "a mask that hides stored tokens": (
        "padding",
        lambda c, s, r: c.generate(c.ids, s, attention_mask=(torch.arange(TOTAL) > 4).long()[None]),
    ),
    "embeddings": (
        "input_ids",
        lambda c, s, r: c.generate(None, s, inputs_embeds=c.model.get_input_embeddings()(c.ids)),
    ),
    "attention weights": (
        "output_attentions",
        lambda c, s, r: c.generate(r, s, output_attentions=True, return_dict_in_generate=True),
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_of_generate_is_an_error_that_says_so(case, name):
    says, use = MISUSES[name]
    session, remaining = case.session()
    with pytest.raises(SessionMisuseError, match=says):
        use(case, session, remaining)


def test_a_static_cache_is_refused_by_transformers(case):
    with pytest.raises(ValueError, match="cache_implementation"):
        case.generate(case.ids, case.session()[0], cache_implementation="static")


@pytest.mark.parametrize("chunk", [5, 12, 400])
def test_chunked_prefill_of_the_rest_is_right_or_an_error(case, chunk):
    session, remaining = case.session()
    try:
        got = case.generate(remaining, session, prefill_chunk_size=chunk)
    except SessionMisuseError:
        return
    assert torch.equal(got, case.oracle(case.ids)[:, STORED:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_forgotten_attention_implementation(case, implementation):
    session, remaining = case.session()
    case.model.set_attn_implementation(implementation)
    with pytest.raises(SessionMisuseError, match="set_attn_implementation"), torch.no_grad():
        case.model.generate(remaining, past_key_values=session, max_new_tokens=2)


FORWARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "positions from 0": ("position_ids", {"position_ids": torch.arange(12)[None]}),
    "positions of the whole text": ("position_ids", {"position_ids": torch.arange(TOTAL)[None]}),
    "a mask of neither length": ("columns", {"attention_mask": torch.ones(1, 40)}),
    "an own mask that does not fit": ("does not fit", {"attention_mask": torch.zeros(1, 1, 12, 12)}),
    "use_cache": ("use_cache", {"use_cache": False}),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_misuse_of_a_forward_pass(case, name):
    says, arguments = FORWARDS[name]
    session, remaining = case.session()
    case.model.set_attn_implementation("context")
    with pytest.raises(SessionMisuseError, match=says), torch.no_grad():
        case.model(remaining, past_key_values=session, **arguments)
    assert torch.equal(case.generate(remaining, session), case.oracle(case.ids)[:, STORED:])  # nothing was added


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.ones(1, 12)},
        {"attention_mask": torch.ones(1, TOTAL)},
        {"position_ids": torch.arange(STORED, TOTAL)[None]},
        {"attention_mask": torch.zeros(1, 1, 12, TOTAL).masked_fill(~torch.ones(12, TOTAL).tril(STORED).bool(), -1e9)},
    ],
    ids=["mask of the rest", "mask of all", "positions", "own mask"],
)
def test_forward_passes_that_say_the_same(case, arguments):
    case.model.set_attn_implementation("context")
    with torch.no_grad():
        expected = case.model(case.session()[1], past_key_values=case.session()[0]).logits
        got = case.model(case.session()[1], past_key_values=case.session()[0], **arguments).logits
    assert torch.allclose(got, expected, atol=1e-5)


def test_positional_arguments_and_the_decoder_alone(case):
    case.model.set_attn_implementation("context")
    session, remaining = case.session()
    with torch.no_grad():
        expected = case.model(remaining, past_key_values=session).logits
        session, _ = case.session()
        assert torch.equal(case.model(remaining, None, None, session).logits, expected)
        session, _ = case.session()
        hidden = case.model.model(remaining, past_key_values=session).last_hidden_state
    assert torch.equal(case.model.lm_head(hidden), expected)


def test_three_positions_a_token(case):
    session, remaining = case.session()
    case.model.set_attn_implementation("context")
    with pytest.raises(UnsupportedModelError, match="position"), torch.no_grad():
        case.model(remaining, past_key_values=session, position_ids=torch.zeros(3, 1, 12, dtype=torch.long))


def test_a_second_turn_of_another_text(case):
    session, remaining = case.session()
    case.generate(remaining, session)
    for ids in (OTHER, remaining, OTHER[:, :5], torch.cat([OTHER, OTHER], 1)):
        with pytest.raises(SessionMisuseError, match="of its own"):
            case.generate(ids, session)


def test_more_rows_than_the_session_has(case):
    session, remaining = case.session()
    case.generate(remaining.expand(2, -1), session)
    case.model.set_attn_implementation("context")
    with pytest.raises(SessionMisuseError, match="3 rows"), torch.no_grad():
        case.model(torch.ones(3, 1, dtype=torch.long), past_key_values=session)


def test_an_interrupted_forward_pass(case, monkeypatch):
    session, remaining = case.session()
    case.model.set_attn_implementation("context")
    second = case.model.model.layers[1]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(second, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            case.model(remaining, past_key_values=session)
    with pytest.raises(SessionMisuseError, match=f"crop\\({STORED}\\)"), torch.no_grad():
        case.model(remaining, past_key_values=session)
    session.session.crop(STORED)
    session.expect(remaining)
    assert torch.equal(case.generate(remaining, session), case.oracle(case.ids)[:, STORED:])


def test_training_mode(case):
    session, remaining = case.session()
    case.model.train()
    for layer in case.model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    try:
        with pytest.raises(SessionMisuseError, match="eval"):
            case.generate(remaining, session)
    finally:
        case.model.eval()


def test_another_model_object(case):
    session, remaining = case.session()
    twin = copy.deepcopy(case.model)
    twin.set_attn_implementation("context")
    with pytest.raises(SessionMisuseError, match="another model"):
        twin.generate(remaining, past_key_values=session, max_new_tokens=2)


def test_a_watched_model_can_be_copied_and_pickled(case):
    model = random_model()
    open_session(case.stored, STORED, case.ids[0], model)
    expected = case.resumed(case.ids, None, max_new_tokens=3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.generate(case.ids, max_new_tokens=3, do_sample=False), expected)


def test_watching_twice_changes_nothing(case):
    case.session()
    prepare = case.model.prepare_inputs_for_generation
    hooks = len(case.model.model._forward_pre_hooks)
    case.session()
    assert case.model.prepare_inputs_for_generation is prepare
    assert len(case.model.model._forward_pre_hooks) == hooks


def test_ids_that_are_none(case):
    with pytest.raises(ContextError, match="whole numbers"):
        case.session()[0].expect([1.5])
    assert random_model().model is not case.model.model
