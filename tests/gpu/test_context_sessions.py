"""Sessions of a model on a GPU: the whole context there, or no more of it than a budget, the rest in host memory."""

from __future__ import annotations

import pytest
import torch
from session_models import NEW, STORED, make_case

from vllm_relational.context.settings import SessionSettings

SMALL_WINDOW = {"first": 16, "last": 32}
SETTINGS = {
    "all on the GPU": SessionSettings(),
    "no more than the window": SessionSettings(**SMALL_WINDOW, device_tokens=0),
    "a budget": SessionSettings(**SMALL_WINDOW, device_tokens=70),
    "searched": SessionSettings(
        **SMALL_WINDOW, device_tokens=0, method="dipr", alpha=1e-30, dense_below=0, dense_layers=0
    ),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    torch.backends.cuda.matmul.allow_tf32 = False
    return make_case(tmp_path_factory.mktemp("context")).to("cuda")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens_as_transformers_cache(case, name):
    expected = case.oracle(case.ids)
    session, remaining = case.session(settings=SETTINGS[name])
    assert remaining.device.type == "cuda"
    assert torch.equal(case.generate(remaining, session), expected[:, STORED:])
    for own, other in zip(session.layers, case.cache.layers, strict=True):
        assert torch.equal(own.keys[:, :, :STORED].cpu(), other.keys.cpu())


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_and_beams(case, name):
    session, remaining = case.session(settings=SETTINGS[name])
    expected = case.oracle(case.ids, num_beams=3)
    assert torch.equal(case.generate(remaining, session, num_beams=3), expected[:, STORED:])
    short = torch.full((1, 5), 7, device="cuda")
    rows = torch.cat([remaining, torch.cat([torch.zeros(1, 7, dtype=torch.long, device="cuda"), short], 1)])
    session, _ = case.session(settings=SETTINGS[name])
    session.expect(None)
    got = case.generate(rows, session, attention_mask=(rows != 0).long())
    alone = case.oracle(torch.cat([case.ids[:, :STORED], short], 1))
    assert torch.equal(got[1:, -NEW:], alone[:, -NEW:])


def test_only_the_budget_is_on_the_gpu(case):
    near = [case.session(settings=settings)[0] for settings in SETTINGS.values()]
    for session in near:
        _ = session.layers[0].keys
    sizes = [rows.parts()[0].keys.shape[2] for rows in (session.session._layers[0] for session in near)]
    assert sizes == [STORED, 48, 70, 48]
