"""A session as transformers' cache: the same answers as transformers' own cache that starts with the same tokens."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from session_models import NEW, STORED, TOTAL, make_case, random_model

from vllm_relational.context import DB, SessionSettings
from vllm_relational.context.errors import ContextError, UnsupportedModelError
from vllm_relational.context.hf import Handle, context_attention, open_session
from vllm_relational.context.mapping import Arena
from vllm_relational.context.text import SessionMisuseError

SPLIT = SessionSettings(contiguous=False)
KINDS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "split float32": (torch.float32, SPLIT),
}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    cases = {dtype: make_case(tmp_path_factory.mktemp("context"), dtype) for dtype in (torch.float32, torch.bfloat16)}
    return cases.__getitem__


@pytest.fixture(params=KINDS)
def made(request, case_of):
    """A case and a function that makes sessions."""
    dtype, settings = KINDS[request.param]
    case = case_of(dtype)
    return case, lambda num_stored=STORED: case.session(num_stored, settings)


def test_the_whole_text_and_the_rest_alone_give_what_transformers_gives(made):
    case, session = made
    expected = case.oracle(case.ids)
    assert torch.equal(case.generate(case.ids, session()[0]), expected)
    opened, remaining = session()
    assert torch.equal(remaining, case.ids[:, STORED:])
    assert torch.equal(case.generate(remaining, opened), expected[:, STORED:])
    assert opened.get_seq_length() == TOTAL + NEW - 1
    whole = torch.ones_like(case.ids)
    assert torch.equal(case.generate(remaining, session()[0], attention_mask=whole), expected[:, STORED:])


@pytest.mark.parametrize("num_stored", [1, 64, 132])
def test_a_prefix_inside_the_stored_context(made, num_stored):
    case, session = made
    opened, remaining = session(num_stored)
    assert torch.equal(case.generate(remaining, opened), case.oracle(case.ids)[:, num_stored:])


def test_nothing_stored(case_of):
    case = case_of(torch.float32)
    opened, remaining = open_session(None, 0, case.ids[0], case.model)
    assert torch.equal(remaining, case.ids)
    assert torch.equal(case.generate(remaining, opened), case.oracle(case.ids))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 2.0},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_ways_to_generate(made, options):
    case, session = made
    torch.manual_seed(3)
    expected = case.oracle(case.ids, **options) if "prompt_lookup_num_tokens" not in options else case.oracle(case.ids)
    for whole in (True, False):
        opened, remaining = session()
        torch.manual_seed(3)
        got = case.generate(case.ids if whole else remaining, opened, **options)
        assert torch.equal(got, expected if whole else expected[:, STORED:])


def test_assisted_decoding(made):
    case, session = made
    expected = case.oracle(case.ids)
    for seed in (0, 1):
        assistant = random_model(case.model.dtype, seed)
        opened, remaining = session()
        assert torch.equal(case.generate(case.ids, opened, assistant_model=assistant), expected)
        opened, remaining = session()
        assert torch.equal(case.generate(remaining, opened, assistant_model=assistant), expected[:, STORED:])


def test_second_turns_and_copies(made):
    case, session = made
    cache = copy.deepcopy(case.cache)
    more = torch.randint(1, 199, (1, 7), generator=torch.Generator().manual_seed(5))
    first = case.resumed(case.ids, cache)
    expected = case.resumed(torch.cat([first, more], 1), cache)
    opened, remaining = session()
    answer = case.generate(remaining, opened)
    branches = [copy.deepcopy(opened) for _ in range(3)]
    longer = torch.cat([answer, more], 1)
    assert torch.equal(case.generate(longer, opened), expected[:, STORED:])
    assert torch.equal(case.generate(torch.cat([case.ids[:, :STORED], longer], 1), branches[0]), expected)
    last = longer[:, branches[1].get_seq_length() - STORED :]
    mask = torch.ones(1, STORED + longer.shape[1], dtype=torch.long)
    assert torch.equal(case.generate(last, branches[1], attention_mask=mask), expected[:, -NEW - last.shape[1] :])
    branches[2].expect(last[0])
    assert torch.equal(case.generate(last, branches[2]), expected[:, -NEW - last.shape[1] :])


def test_rows_on_one_prefix(made):
    case, session = made
    opened, remaining = session()
    assert torch.equal(case.generate(remaining.expand(2, -1), opened)[1:], case.oracle(case.ids)[:, STORED:])
    both = torch.cat([case.ids, case.ids])
    both[1, STORED + 3 :] = 7
    opened, _ = session()
    opened.expect(None)
    assert torch.equal(case.generate(both, opened), case.oracle(both))


def test_rows_of_different_lengths_are_padded_behind_the_stored_part(made):
    case, session = made
    short = torch.tensor([[5, 4, 3, 2, 6]])
    long = case.ids[:, STORED:]
    rows = torch.cat([long, torch.cat([torch.zeros(1, long.shape[1] - 5, dtype=torch.long), short], 1)])
    opened, _ = session()
    opened.expect(None)
    got = case.generate(rows, opened, attention_mask=(rows != 0).long())
    stored = case.ids[:, :STORED]
    assert torch.equal(got[:1], case.oracle(case.ids)[:, STORED:])
    assert torch.equal(got[1:, -NEW - 5 :], case.oracle(torch.cat([stored, short], 1))[:, STORED:])
    whole = torch.cat([stored.expand(2, -1), rows], 1)
    for mask in ((whole != 0).long(), None):  # without one, generate makes it from the padding
        again, _ = session()
        again.expect(None)
        assert torch.equal(case.generate(whole, again, attention_mask=mask)[:, STORED:], got)
    with pytest.raises(ContextError, match="rows"):
        _ = opened.session.ids
    opened.session.select([1])
    with pytest.raises(ContextError, match="padding"):
        _ = opened.session.ids


def test_direct_calls_step_by_step(made):
    case, session = made
    opened, remaining = session()
    case.model.set_attn_implementation("context")
    with torch.no_grad():
        whole = case.model(remaining, past_key_values=session()[0]).logits
        steps = [case.model(piece, past_key_values=opened).logits for piece in remaining.split(5, 1)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=0.1 if whole.dtype == torch.bfloat16 else 1e-4)
    assert opened.session.ids.tolist() == case.ids[0].tolist()


def test_crop_takes_new_tokens_back_and_no_stored_ones(made):
    case, session = made
    opened, remaining = session()
    case.generate(remaining, opened)
    opened.crop(-(opened.get_seq_length() - STORED - 3))
    assert opened.get_seq_length() == STORED + 3
    assert torch.equal(case.generate(case.ids, opened), case.oracle(case.ids))
    opened.crop(STORED + 2)
    assert opened.get_seq_length() == STORED + 2
    with pytest.raises(ContextError, match="are stored"):
        opened.crop(-3)
    opened.reset()
    assert torch.equal(case.generate(remaining, opened), case.oracle(case.ids)[:, STORED:])


def test_the_stored_files_stay_as_they_are(made):
    case, session = made
    before = [file.path.read_bytes() for file in case.stored.files]
    opened, remaining = session(90)
    case.generate(remaining, opened, num_beams=2)
    assert [file.path.read_bytes() for file in case.stored.files] == before


def test_a_database_and_a_second_process_worth_of_turns(tmp_path, case_of):
    case = case_of(torch.float32)
    db = DB(tmp_path / "db")
    db.import_(case.ids[0, :STORED], case.cache, case.model)
    session, remaining = db.create_session(case.ids[0], case.model)
    answer = case.generate(remaining, session)
    assert torch.equal(answer, case.oracle(case.ids)[:, STORED:])
    db.store(session)
    more = torch.cat([case.ids[:, :STORED], answer, torch.tensor([[9, 8, 7]])], 1)
    settings = SessionSettings(method="dipr", alpha=1e-30, first=8, last=8, dense_below=0, dense_layers=0)
    found, rest = DB(tmp_path / "db").create_session(more, case.model, settings)
    assert rest.shape[1] == 4  # the last token of the answer was never given to the model
    assert torch.equal(case.generate(rest, found), case.oracle(more)[:, -rest.shape[1] - NEW :])
    assert found.session.counts.searches == 2 * (NEW - 1)


def test_growth_beyond_the_room_that_was_reserved(case_of, monkeypatch):
    monkeypatch.setattr("vllm_relational.context.torch_rows.ROOM", 2)
    case = case_of(torch.float32)
    opened, remaining = case.session()
    assert torch.equal(case.generate(remaining, opened, num_beams=2), case.oracle(case.ids, num_beams=2)[:, STORED:])


@pytest.mark.parametrize("mappings", [0, 5, 8, 12])
def test_a_session_where_mapping_fails_sooner_or_later(case_of, monkeypatch, mappings):
    """A layer of one row takes 4 mappings."""
    left, lay = [mappings], Arena.lay

    def sometimes(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(12, "no mappings left")
        lay(*arguments)

    monkeypatch.setattr(Arena, "lay", sometimes)
    case = case_of(torch.float32)
    opened, remaining = case.session()
    got = case.generate(remaining.expand(2, -1), opened)
    assert torch.equal(got[1:], case.oracle(case.ids)[:, STORED:])


def test_layers_show_all_keys(made):
    case, session = made
    opened, remaining = session(100)
    with torch.no_grad():
        case.model.set_attn_implementation("context")
        case.model(remaining[:, : STORED - 100], past_key_values=opened)
    for own, expected in zip(opened.layers, case.cache.layers, strict=True):
        assert own.keys.shape == expected.keys.shape
        assert torch.equal(own.keys[:, :, :100], expected.keys[:, :, :100])
        assert torch.allclose(own.values, expected.values, atol=0.1)


def test_a_model_set_to_context_works_without_a_session(case_of):
    case = case_of(torch.float32)
    expected = case.oracle(case.ids)
    assert torch.equal(case.generate(case.ids, copy.deepcopy(case.cache)), expected)
    assert torch.equal(case.generate(case.ids, None), case.resumed(case.ids, None))


def test_no_gradients_through_a_session(case_of):
    case = case_of(torch.float32)
    opened, remaining = case.session()
    case.model.set_attn_implementation("context")
    loss = case.model(remaining, past_key_values=opened).logits.sum()
    with pytest.raises(ContextError, match="inference"):
        loss.backward()


def test_handles_are_no_keys(case_of):
    case = case_of(torch.float32)
    opened, _ = case.session()
    handle = Handle.of(opened.session, 0, torch.zeros(1, 2, 3, 16))
    assert handle.shape == (1, 2, STORED, 16)
    assert "layer=0" in repr(handle)
    for use in (lambda: handle + 1, lambda: handle.sum(), lambda: torch.cat([handle, handle])):
        with pytest.raises(SessionMisuseError, match="set_attn_implementation"):
            use()


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "sliding_window"])
def test_attention_that_is_not_computed(case_of, name):
    opened, _ = case_of(torch.float32).session()
    handle = Handle.of(opened.session, 0, torch.zeros(1, 2, 3, 16))
    with pytest.raises(UnsupportedModelError, match=name):
        context_attention(torch.nn.Module(), torch.zeros(1, 6, 1, 16), handle, handle, None, **{name: 4})


def test_a_compiled_model(case_of):
    case = case_of(torch.float32)
    compiled = torch.compile(random_model(), backend="eager")
    session, remaining = open_session(case.stored, STORED, case.ids[0], compiled)
    compiled.set_attn_implementation("context")
    answer = compiled.generate(remaining, past_key_values=session, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(answer, case.oracle(case.ids)[:, STORED:])


def test_an_older_transformers(case_of, monkeypatch):
    case = case_of(torch.float32)
    monkeypatch.setattr(transformers.GenerationMixin, "prepare_inputs_for_generation", lambda self, input_ids: {})
    with pytest.raises(UnsupportedModelError, match="newer transformers"):
        case.session()


def test_a_dtype_that_the_model_has_no_more(tmp_path):
    case = make_case(tmp_path)
    opened, remaining = case.session()
    case.model.to(torch.bfloat16)
    with pytest.raises(ContextError, match="bfloat16"):
        case.generate(remaining, opened)


def test_a_model_that_knows_of_no_session(case_of):
    case = case_of(torch.float32)
    opened, remaining = case.session()
    other = random_model()
    other.set_attn_implementation("context")
    with pytest.raises(SessionMisuseError, match="not made for"):
        other.generate(case.ids, past_key_values=opened, max_new_tokens=2)
    with pytest.raises(RuntimeError):  # by transformers: ids without a mask over the whole text
        other.generate(remaining, past_key_values=opened, max_new_tokens=2)
