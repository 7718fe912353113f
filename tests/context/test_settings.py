"""Settings of sessions: which stored tokens stay away from the model's device."""

from __future__ import annotations

import pytest

from vllm_relational.context.errors import ContextError
from vllm_relational.context.settings import SessionSettings


@pytest.mark.parametrize(
    ("settings", "num_stored", "on_cpu", "far"),
    [
        ({}, 5000, True, (0, 5000)),
        ({}, 5000, False, (128, 128)),  # everything on the device
        ({"device_tokens": 0}, 5000, False, (128, 4488)),  # the window at least
        ({"device_tokens": 1000}, 5000, False, (128, 4128)),
        ({"device_tokens": 5000}, 5000, False, (128, 128)),
        ({"device_tokens": 0}, 600, False, (128, 128)),
        ({"device_tokens": 0}, 50, False, (50, 50)),
        ({"device_tokens": 0, "first": 0, "last": 0}, 50, False, (0, 50)),
    ],
)
def test_far_tokens(settings, num_stored, on_cpu, far):
    assert SessionSettings(**settings).far(num_stored, on_cpu) == far


@pytest.mark.parametrize("settings", [{"first": -1}, {"last": 1.5}, {"device_tokens": "1"}, {"first": True}])
def test_settings_that_there_are_not(settings):
    with pytest.raises(ContextError, match=next(iter(settings))):
        SessionSettings(**settings)
