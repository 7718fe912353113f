"""A session as a cache of transformers, and the attention function ``context`` that reads it.

    model.set_attn_implementation("context")
    session, remaining = db.create_session(ids, model)
    model.generate(remaining, past_key_values=session, max_new_tokens=100)

A model's attention function is handed what ``update`` returned, not the cache. So ``update`` returns a ``Handle``, a
tensor without data that knows the session; every operation on one raises, so that no other attention function can take
it for keys. Importing this module registers the attention function and its mask.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, Cache, GenerationMixin
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vllm_relational.context import guard
from vllm_relational.context.errors import ContextError, UnsupportedModelError
from vllm_relational.context.fingerprint import state_of_weights
from vllm_relational.context.session import ContextSession, StoredLayers
from vllm_relational.context.settings import SessionSettings
from vllm_relational.context.text import SessionMisuseError

NAME = "context"
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "sliding_window")  # what some models want of their attention


class Handle(torch.Tensor):
    """Stands for the keys or the values of a layer of a session: shape, dtype and device, no data."""

    session: ContextSession
    layer: int

    @staticmethod
    def of(session: ContextSession, layer: int, new: torch.Tensor) -> Handle:
        """Of a layer that ``new``, ``[batch, num_kv_heads, new tokens, head_size]``, was just added to."""
        shape = (*new.shape[:2], session.length(layer), new.shape[3])
        handle: Handle = torch.Tensor._make_wrapper_subclass(
            Handle, shape, dtype=new.dtype, device=new.device, requires_grad=False
        )
        handle.session, handle.layer = session, layer
        return handle

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Handle(layer={self.layer}, shape={list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise SessionMisuseError(
            f"{func} needs keys, which stay in the session: call model.set_attn_implementation({NAME!r}) first. "
            "Where that was done, this model's attention is code of its own and cannot read sessions"
        )


class SessionLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a session, for transformers."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    is_initialized = True

    def __init__(self, session: ContextSession, index: int) -> None:
        self.session, self.index = session, index

    @property
    def keys(self) -> torch.Tensor:  # type: ignore[override]
        """``[batch, num_kv_heads, tokens, head_size]``."""
        return self.session.keys_values(self.index)[0]

    @property
    def values(self) -> torch.Tensor:  # type: ignore[override]
        """``[batch, num_kv_heads, tokens, head_size]``."""
        return self.session.keys_values(self.index)[1]

    @property
    def batch_size(self) -> int:
        """Rows of the session."""
        return self.session.batch

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: a session knows its shape."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds new tokens; returns handles of keys and values."""
        self.session.update(None, key_states, value_states, self.index)
        return Handle.of(self.session, self.index, key_states), Handle.of(self.session, self.index, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask has columns for, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that the layer holds."""
        return self.session.length(self.index)

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class ContextCache(Cache):
    """A session that transformers takes for its cache: pass it as ``past_key_values`` to the model it was made for.

    Use it as you would a cache that holds the beginning of the prompt: with ``generate`` and the whole prompt, or only
    the remaining ids; with beams, several rows, sampling; for a second turn; ``copy.deepcopy`` starts several answers
    from one state. What would give wrong answers raises ``SessionMisuseError``.
    """

    fingerprint: str | None = None  # of the model, where a database made the session: there it can be stored
    model_name = ""

    def __init__(self, session: ContextSession, model: torch.nn.Module, num_layers: int) -> None:
        super().__init__(layers=[SessionLayer(session, index) for index in range(num_layers)])
        self.session = session
        self._model = weakref.ref(guard.decoder_of(model))
        self._whole_model, self._weights = weakref.ref(model), state_of_weights(guard.decoder_of(model))
        self._announced = 0
        self.fingerprint: str | None = None  # of the model and its name, for ``DB.store``
        self.model_name = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> ContextCache:
        other = memo[id(self)] = copy.copy(self)
        other.session = copy.deepcopy(self.session, memo)
        other.layers = [SessionLayer(other.session, index) for index in range(len(self.layers))]
        return other

    def is_for(self, decoder: torch.nn.Module) -> bool:
        """Whether the session was made for this model object."""
        return self._model() is decoder

    @property
    def model(self) -> Any:
        """The model that it was made for; None where that is gone."""
        return self._whole_model()

    def weights_are_the_same(self) -> bool:
        """As when the session was made; changes through ``weight.data`` show only when it is stored."""
        return bool(state_of_weights(self._model()) == self._weights)

    def announce(self, ids: Any, seen: Any = None) -> None:
        """The model is about to add these tokens, ``[batch, new tokens]``, to every layer."""
        self.session.announce(ids, seen)
        self._announced = self.session.num_tokens + ids.shape[1]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds what was announced; anything else comes from a model that does not know of the session."""
        if self.session.length(layer_idx) + key_states.shape[2] != self._announced:
            raise SessionMisuseError(
                "a session was given to a model that it was not made for, or the model was changed since: make one "
                "with db.create_session(ids, model)"
            )
        layer = self.layers[layer_idx]
        assert isinstance(layer, SessionLayer)
        return layer.update(key_states, value_states)

    def expect(self, ids: Any = None) -> None:
        """Say what comes next instead of what was said before; None: anything. See ``ContextSession.expect``."""
        self.session.expect(ids)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows of beams that go on."""
        self.session.select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self.session.select(torch.arange(self.session.batch)[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        self.session.select(torch.arange(self.session.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Minus so many tokens where negative; to so many where positive, as transformers up to 5.17 had it."""
        here = self.session.num_tokens
        self.session.crop(min(here, tokens_to_remove) if tokens_to_remove > 0 else here + tokens_to_remove)

    def reset(self) -> None:
        """Back to the stored tokens."""
        self.session.reset()


def open_session(
    stored: StoredLayers | None, num_stored: int, ids: Any, model: Any, settings: SessionSettings | None = None
) -> tuple[ContextCache, torch.Tensor]:
    """A session of a model and the ids that it still has to be given, ``[1, 1 or more]``, on its device.

    ids: the whole text, ``[tokens]``, of which the first ``num_stored`` (fewer than all) are those of ``stored``.
    """
    if "next_sequence_length" not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
        raise UnsupportedModelError(f"sessions need a newer transformers than {transformers.__version__}: upgrade it")
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    session = ContextSession(
        stored, num_stored, ids, device=model.device, dtype=model.dtype, settings=settings, num_layers=layers
    )
    guard.watch(model)
    cache = ContextCache(session, model, layers)
    return cache, torch.tensor(session.remaining.ids, device=model.device)


class _NotDifferentiable(torch.autograd.Function):
    """What the model was computed with is not known any more: a backward pass must not go on silently without it."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise ContextError("a session is for inference: train without past_key_values")


def context_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers: ``[batch, num_heads, new, head_size]`` to ``[batch, new, num_heads, head_size]``.

    Without a session it is transformers' own (sdpa), so that a model set to ``context`` works as before.
    """
    if not isinstance(key, Handle):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    _check(dropout, kwargs)
    key.session.remember(query.detach(), key.layer)
    out, _ = key.session.attention(query.detach(), key.layer, attention_mask, scaling)
    if query.requires_grad and torch.is_grad_enabled():
        out = _NotDifferentiable.apply(out, query)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _check(dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise SessionMisuseError("the model is in training mode, with dropout: call model.eval()")
    if kwargs.get("output_attentions"):
        raise SessionMisuseError("attention over a session gives no attention weights: leave out output_attentions")
    for name in _NOT_COMPUTED:
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(f"the model wants {name} in its attention, which a session does not compute")


AttentionInterface.register(NAME, context_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
