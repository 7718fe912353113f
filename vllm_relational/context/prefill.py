"""Computes the keys and values of a text with a model of transformers, and stores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_relational.context.errors import ContextError
from vllm_relational.context.files import STORED_AS
from vllm_relational.context.fingerprint import check_supported, fingerprint_of_model
from vllm_relational.context.token_ids import as_token_ids

if TYPE_CHECKING:
    from vllm_relational.context.store import DB

DTYPES = ("auto", *STORED_AS)
CHUNK = 1024  # tokens that are computed at a time


@dataclass(frozen=True)
class AddedContext:
    """num_known: tokens that were stored already, as the beginning of another context or as a whole."""

    id: str
    num_tokens: int
    num_known: int


def load_model(model: str, tokenizer: str | None, dtype: str, device: str | None) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, by folder or hub name. device: None for a GPU if there is one.

    Raises ``ContextError`` where they cannot be loaded, ``UnsupportedModelError`` before any weight is read.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ContextError("storing contexts needs torch: pip install 'vllm-relational[cpu]', or [cuda]") from error
    _check_dtype(dtype)
    hub: Any = transformers
    hub.logging.disable_progress_bar()
    try:
        check_supported(hub.AutoConfig.from_pretrained(model))
        words = hub.AutoTokenizer.from_pretrained(tokenizer or model)
        loaded = hub.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        return loaded.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), words
    except (OSError, ValueError, RuntimeError) as error:
        raise ContextError(f"cannot load the model {model}: {' '.join(str(error).split())[:300]}") from error


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ContextError(f"dtype {dtype!r}: there are {', '.join(DTYPES)}")


def token_ids_of(text: str, tokenizer: Any, chat: bool) -> list[int]:
    """Of a text as the beginning of a prompt. chat: as the beginning of the first message in the model's template."""
    if not text.strip():
        raise ContextError("the text is empty: nothing to store")
    if not chat:
        return list(tokenizer(text, verbose=False).input_ids)
    if not tokenizer.chat_template:
        raise ContextError("the model has no chat template: leave out --chat")
    whole = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    head, found, _ = whole.partition(text)
    if not found:
        raise ContextError("the model's chat template changes the text: leave out --chat, or store the ids in Python")
    return list(tokenizer(head + text, add_special_tokens=False, verbose=False).input_ids)


def add_tokens(
    db: DB,
    ids: Any,
    model: Any,
    name: str | None = None,
    chunk: int = CHUNK,
    tell: Callable[[int], None] = lambda n: None,
) -> AddedContext:
    """Compute what is not stored yet of a sequence of token ids, and store it.

    chunk: tokens that are computed at a time. tell: called with the number of tokens done so far. The model is set to
    the attention ``context``. Raises ``ContextError``.
    """
    token_ids = as_token_ids(ids, model.get_input_embeddings().weight.shape[0])
    _check_length(len(token_ids), model)
    if chunk < 1:
        raise ContextError(f"a chunk of {chunk} tokens: 1 or more")
    found = db.find(token_ids, fingerprint_of_model(model))
    if found is not None and found[1] == found[0].num_tokens == len(token_ids):
        if name is not None:
            db.name(found[0].id, name)
        return AddedContext(found[0].id, len(token_ids), len(token_ids))
    session, remaining = db.create_session(token_ids, model)
    num_known = len(token_ids) - remaining.shape[1]
    _compute(session, remaining, model, chunk, lambda done: tell(num_known + done))
    return AddedContext(db.store(session, name), len(token_ids), num_known)


def _compute(session: Any, remaining: Any, model: Any, chunk: int, tell: Callable[[int], None]) -> None:
    import torch

    model.set_attn_implementation("context")
    with torch.no_grad():
        for start in range(0, remaining.shape[1], chunk):
            some = remaining[:, start : start + chunk]
            model(input_ids=some, past_key_values=session, use_cache=True, logits_to_keep=1)
            tell(start + some.shape[1])


def _check_length(num_tokens: int, model: Any) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and num_tokens > most:
        raise ContextError(
            f"{num_tokens:,} tokens, but the positions of the model end at {most:,}: store a shorter text"
        )
