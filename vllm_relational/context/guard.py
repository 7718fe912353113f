"""Sees to it that a model of transformers uses a session rightly: positions, token ids, mask.

A cache that already holds the beginning of the prompt is easy to use wrongly, and most ways end in wrong tokens without
an error. ``watch`` puts a hook in front of the model's decoder, which every forward pass goes through, and completes
what ``generate`` works out from the ids that it is given, so that these may be the whole text, or what follows the
stored part. Nothing changes for calls without a session.
"""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any

import numpy as np
import torch

from vllm_relational.context.errors import UnsupportedModelError
from vllm_relational.context.session import ContextSession
from vllm_relational.context.text import SessionMisuseError

_WATCHED = "_watches_sessions"
_COUNTS_PADDING = "create_position_ids_from_input_ids"  # a method of the embeddings of RoBERTa and its kin


def decoder_of(model: Any) -> Any:
    """The module that is given token ids, positions and the cache, with or without a head on top."""
    base = getattr(model, "base_model", model)
    return base.get_decoder() if hasattr(base, "get_decoder") else base  # OPT's head calls that of its base model


def watch(model: Any) -> None:
    """Check from now on every forward pass of the model that is given a session. ``UnsupportedModelError`` for a model
    that cannot be given one."""
    model = getattr(model, "_orig_mod", model)  # of what torch.compile returned, ``generate`` runs the model itself
    decoder = decoder_of(model)
    _check_model(model, decoder)
    if _WATCHED not in decoder.__dict__:
        decoder.register_forward_pre_hook(_before_forward, with_kwargs=True)
        setattr(decoder, _WATCHED, True)
    if _WATCHED not in model.__dict__ or "prepare_inputs_for_generation" not in model.__dict__:
        _complete_generate(model)
        setattr(model, _WATCHED, True)


def _check_model(model: Any, decoder: Any) -> None:
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        raise UnsupportedModelError(
            f"{type(model).__name__} computes attention in code of its own, which cannot read a session: use a model "
            "whose attention can be set"
        )
    if any(hasattr(module, _COUNTS_PADDING) for module in decoder.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} numbers positions by its padding token, and sessions count them from 0"
        )


def _session_in(cache: Any) -> Any:
    """The cache, where it is a session's."""
    return cache if isinstance(getattr(cache, "session", None), ContextSession) else None


# ------------------------------------------------------------------------------------------------- every forward pass
def _before_forward(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = _arguments(decoder, args, kwargs)
    cache = _session_in(given.get("past_key_values"))
    if cache is None:
        return None
    _check_call(decoder, cache, given)
    ids = given["input_ids"]
    mask = given["attention_mask"] = _whole_mask(given.get("attention_mask"), ids, cache.session)
    positions = _positions(mask, ids, cache.session.num_tokens)
    if given.get("position_ids") is None:
        given["position_ids"] = positions
    _check_positions(given["position_ids"], positions, mask)
    cache.announce(ids.cpu().numpy(), None if mask is None or mask.ndim != 2 else _last(mask, ids).bool().cpu().numpy())
    return (), given


def _arguments(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    names = list(inspect.signature(decoder.forward).parameters) if args else []
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _check_call(decoder: Any, cache: Any, given: dict[str, Any]) -> None:
    if not cache.is_for(decoder):
        raise SessionMisuseError("the session was made for another model object: db.create_session(ids, this model)")
    if not cache.weights_are_the_same():
        raise SessionMisuseError(
            "the model was changed since the session was made (weights, adapters, dtype or device; it is "
            f"{decoder.dtype} on {decoder.device} now): make a session for the model as it is with db.create_session"
        )
    implementation = decoder.config._attn_implementation
    if implementation != "context":
        raise SessionMisuseError(
            f"the model's attention is {implementation!r}: call model.set_attn_implementation('context') first"
        )
    _check_use_cache(given)
    ids = given.get("input_ids")
    if ids is None:
        raise SessionMisuseError("a session must know the ids of its tokens: pass input_ids, not inputs_embeds")
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise SessionMisuseError(
            f"input_ids {list(ids.shape)}: the session holds {cache.session.num_tokens} tokens of the text, and the "
            "model must be given at least one more"
        )


def _check_use_cache(given: dict[str, Any]) -> None:
    if given.get("use_cache") is False:
        raise SessionMisuseError("use_cache=False with a session: every step would add all tokens again; leave it out")


def _whole_mask(mask: Any, ids: torch.Tensor, session: ContextSession) -> Any:
    """A mask over the session's tokens and the new ones, ``[batch, tokens]``; one over the new ones only is completed.
    None where everything is seen. Masks of other kinds are the caller's own."""
    past, new = session.num_tokens, ids.shape[1]
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.ndim == 2):
        return _own_mask(mask, past + new)
    if mask is None and session.text.seen.all():
        return None
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape[1] == new:
        mask = _with_front(mask, session, past)
    if mask.shape[1] != past + new:
        raise SessionMisuseError(
            f"the attention mask has {mask.shape[1]} columns; the session holds {past} tokens and {new} are new: it "
            f"must have {past + new}, or {new} for the new ones only"
        )
    if not torch.equal(mask.bool(), _with_front(mask[:, past:], session, past).bool()):
        raise SessionMisuseError(
            "the attention mask hides tokens that the session holds, or shows padding in it: in a batch, pad between "
            "the stored tokens and the rest of a text"
        )
    return None if bool(mask.all()) else mask


def _with_front(mask: torch.Tensor, session: ContextSession, count: int) -> torch.Tensor:
    """A mask with columns for the first ``count`` tokens of the session's text in front."""
    seen = torch.tensor(session.text.seen[:, :count], device=mask.device)
    if len(seen) not in (1, len(mask)):
        raise SessionMisuseError(f"{len(mask)} rows of tokens for a session of {len(seen)} rows")
    return torch.cat([seen.expand(len(mask), -1).to(mask.dtype), mask], 1)


def _own_mask(mask: Any, total: int) -> Any:
    if isinstance(mask, torch.Tensor) and mask.shape[-1] != total:
        raise SessionMisuseError(
            f"the attention mask {list(mask.shape)} does not fit: the session's tokens and the new ones are {total}"
        )
    return mask


def _positions(mask: Any, ids: torch.Tensor, past: int) -> torch.Tensor:
    """Positions of the new tokens, ``[batch or 1, new tokens]``: so many tokens that are seen stand before each."""
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return _last(mask.long().cumsum(1) - 1, ids).clamp(min=0)
    return torch.arange(past, past + ids.shape[1], device=ids.device)[None]


def _last(whole: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The columns of the new tokens."""
    return whole[:, -ids.shape[1] :]


def _check_positions(given: torch.Tensor, expected: torch.Tensor, mask: Any) -> None:
    if given.ndim != 2:
        raise UnsupportedModelError(f"position_ids {list(given.shape)}: sessions know one position a token")
    if not _same_positions(given, expected, mask):
        raise SessionMisuseError(
            f"position_ids start at {given[0, 0].item()}, the first new token stands at {expected[0, 0].item()}: leave "
            "them out, and give the model the whole text or the ids that create_session returned"
        )


def _same_positions(given: torch.Tensor, expected: torch.Tensor, mask: Any) -> bool:
    """Whether positions are equal wherever a token is seen."""
    if given.shape[1] != expected.shape[1] or len(given) not in (1, max(len(expected), len(given))):
        return False
    same = given == expected
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        same = same | ~mask[:, -given.shape[1] :].bool()
    return bool(same.all())


# ------------------------------------------------------------------------------------------------------------ generate
def _complete_generate(model: Any) -> None:
    """Let the model's ``prepare_inputs_for_generation`` know of sessions."""
    original = getattr(type(model), "prepare_inputs_for_generation", None)
    if original is None:
        return

    @functools.wraps(original)
    def prepare_inputs_for_generation(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        cache = _session_in(kwargs.get("past_key_values"))
        if cache is not None and not args:
            kwargs = _prepared(cache.session, input_ids, kwargs)
        return original(self, input_ids, *args, **kwargs)

    model.prepare_inputs_for_generation = MethodType(prepare_inputs_for_generation, model)


def _prepared(session: ContextSession, ids: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``prepare_inputs_for_generation``, which hands on the last tokens of ``ids``, for the tokens
    that the session has not got. ``generate`` works out their number and positions as if ``ids`` were the whole text.
    """
    _check_use_cache(kwargs)
    if kwargs.get("inputs_embeds") is not None:
        raise SessionMisuseError("a session must know the ids of its tokens: pass input_ids, not inputs_embeds")
    given = kwargs.get("position_ids")
    new = kwargs.get("next_sequence_length")
    if new is None or kwargs.get("is_first_iteration"):
        new = _number_of_new(session, ids, ids.shape[1] if given is None else given.shape[-1])
    left_out = session.num_tokens + new - ids.shape[1]  # tokens of the text in front of ``ids``
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] == ids.shape[1]:
        mask = _with_front(mask, session, left_out)
    positions = _positions(mask, ids[:, -new:], session.num_tokens)
    before = torch.tensor(session.text.seen[:, :left_out].sum(1, keepdims=True), device=ids.device)
    if given is not None and _same_positions(given[..., -new:], positions - before, mask):
        kwargs = {**kwargs, "position_ids": positions}
    return {**kwargs, "next_sequence_length": new, "attention_mask": mask}


def _number_of_new(session: ContextSession, ids: torch.Tensor, positions: int) -> int:
    """How many of ``ids``, ``[batch, tokens]``, the session has not got.

    They may be the whole text, what follows the stored tokens, or new tokens only: those that are known to come, or any
    where a mask over the whole text (``positions`` columns) says so or ``session.expect(None)`` was called.
    """
    given, here = ids.cpu().numpy(), session.num_tokens
    count = given.shape[1]
    starts = [0, session.num_stored, here]
    if positions != count:
        starts = [positions - count]
    starts.sort(
        key=lambda start: start + count != here + len(session.remaining)
    )  # the text known beforehand goes first
    for start in starts:
        if _fits(session, given, start, positions != count):
            return int(start + count - here)
    raise SessionMisuseError(_why_not(session, given))


def _fits(session: ContextSession, given: np.ndarray, start: int, said: bool) -> bool:
    """Whether ids can be the session's text from a token on, with at least one new token at the end."""
    here: int = session.num_tokens
    if not 0 <= start <= here < start + given.shape[1]:
        return False
    old, new = given[:, : here - start], given[:, here - start :]
    known = session.remaining.ids[:, : new.shape[1]]
    if not bool((old == session.text.ids[:, start:here]).all()):
        return False
    if start == here and not said and not session.open_ended:
        return known.shape[1] > 0 and bool((new[:, : known.shape[1]] == known).all())
    return True


def _why_not(session: ContextSession, given: np.ndarray) -> str:
    here, text = session.num_tokens, session.text.ids[:, : given.shape[1]]
    unlike = np.argwhere(given[:, : text.shape[1]] != text)
    where = f"token {unlike[0][1]} differs" if len(unlike) else "nothing comes behind the tokens that it holds"
    return (
        f"the {given.shape[1]} ids are not how the session's text of {here} tokens starts and goes on ({where}), nor "
        "what follows its stored part. Give generate the whole text or the ids that create_session returned, without "
        "prefill_chunk_size; another text needs a session of its own; new tokens only need session.expect(ids) before"
    )
