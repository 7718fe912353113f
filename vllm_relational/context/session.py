"""A session: a text that starts with stored tokens and grows, its keys and values, and attention to them.

AlayaDB's interface (arXiv 2504.10326, section 4): ``update`` adds keys and values of one layer, ``attention`` attends
to all of that layer. What is stored is never changed; new tokens live in the session until it is stored itself.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch

from vllm_relational.context.body import SearchCounts, SearchedBody
from vllm_relational.context.errors import ContextError
from vllm_relational.context.files import LayerFile
from vllm_relational.context.search import SearchPlan
from vllm_relational.context.settings import SessionSettings
from vllm_relational.context.text import SessionMisuseError, Text
from vllm_relational.context.torch_attention import Partial, attend, causal_mask, greatest_score, merge
from vllm_relational.context.torch_rows import LayerRows, Part, RowShape, open_rows, outside

MAX_QUERIES = 512
"""Tokens whose queries a session keeps of each layer, to build a graph from."""


class StoredLayers(Protocol):
    """What a session needs of a stored context (``store.StoredContext``): immutable, usable after it was deleted."""

    def layer(self, index: int) -> LayerFile:
        """The keys and values of a layer."""
        ...


class ContextSession:
    """Not thread-safe. Any number of sessions may be built on one stored context.

    stored, num_stored: how many tokens of which context this text starts with; None and 0 where nothing is stored.
    ids:     the whole text that is known beforehand, stored tokens first, ``[tokens]``; more may follow.
    device, dtype: of new keys and values. Stored ones must have the same dtype.
    num_layers: of the model; None: as many as are updated.
    """

    def __init__(
        self,
        stored: StoredLayers | None,
        num_stored: int,
        ids: Any,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype,
        settings: SessionSettings | None = None,
        num_layers: int | None = None,
    ) -> None:
        self.stored, self.num_stored = stored, num_stored if stored is not None else 0
        self.device, self.dtype, self.settings = torch.device(device), dtype, settings or SessionSettings()
        self._text = self._prompt = Text.of(ids)
        self.open_ended = False  # whether anything may come next
        self._num_layers = num_layers
        self._layers: dict[int, LayerRows] = {}
        self._body = self._searched_body()
        self._asked: dict[int, list[torch.Tensor]] = {}
        self._masks: tuple[torch.Tensor | None, dict[Any, torch.Tensor | None]] = (None, {})

    # ------------------------------------------------------------------------------------------------ tokens
    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are here, in every layer."""
        return min(self._lengths(), default=self.num_stored)

    def _lengths(self) -> set[int]:
        """Of all layers; of those that were updated, where it is not known how many there are."""
        return {self.length(layer) for layer in (self._layers if self._num_layers is None else range(self._num_layers))}

    @property
    def batch(self) -> int:
        """LayerRows: texts that have the stored tokens in common."""
        return self._text.rows

    @property
    def text(self) -> Text:
        """The tokens that are here, of every row."""
        return self._text[: self.num_tokens]

    @property
    def remaining(self) -> Text:
        """What the text is known to go on with."""
        return self._text[self.num_tokens :]

    @property
    def ids(self) -> np.ndarray:
        """Ids of the tokens whose keys and values are here, ``[num_tokens]``, for storing them; ``ContextError`` where
        they are not those of one text without padding."""
        text = self.text
        if text.rows > 1:
            raise ContextError(f"the session has {text.rows} rows: keep one with session.select([row]) first")
        if not text.seen.all():
            raise ContextError("the session's text has padding in it: it cannot be stored")
        if len(text) < self.num_tokens:
            raise ContextError(
                f"the session holds {self.num_tokens} tokens and was told the ids of {len(text)}: call "
                "session.announce(ids) before update"
            )
        ids: np.ndarray = text.ids[0]
        return ids

    def expect(self, ids: Any = None) -> None:
        """Say what comes next instead of what was said before, ``[tokens]`` or ``[batch, tokens]``; None: anything."""
        self._text = self.text if ids is None else self.text.then(Text.of(ids))
        self.open_ended = ids is None

    def announce(self, ids: Any, seen: Any = None) -> None:
        """Say which tokens the next ``update`` of every layer brings: ``[new tokens]`` or ``[batch, new tokens]``.

        seen: bool of the same shape, false for padding. Raises ``SessionMisuseError`` where other tokens are known to
        come, and where an earlier forward pass broke off.
        """
        self._check_whole()
        self._text = self._text.followed(Text.of(ids, seen), self.num_tokens)
        self.open_ended = False

    def _check_whole(self) -> None:
        lengths = self._lengths()
        if len(lengths) > 1:
            raise SessionMisuseError(
                f"a forward pass broke off: layers hold {min(lengths)} to {max(lengths)} tokens. Call "
                f"session.crop({min(lengths)}) to go on from where all of them are"
            )

    # ------------------------------------------------------------------------------------------ keys and values
    def length(self, layer: int) -> int:
        """Tokens that a layer holds."""
        return self._layers[layer].length if layer in self._layers else self.num_stored

    def update(self, query: torch.Tensor | None, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        """Add keys and values of new tokens, ``[num_kv_heads, new tokens, head_size]``, or with the batch in front.

        query: of the same tokens, ``[num_heads, new tokens, head_size]``; kept to build indexes from, may be None.
        ``ContextError`` for another shape or dtype than the session's.
        """
        keys, values = (each.detach()[None] if each.ndim == 3 else each.detach() for each in (keys, values))
        rows = self._rows(layer, keys)
        self._check_new(rows, keys, values, layer)
        rows.append(keys, values)
        if query is not None:
            self.remember(query if query.ndim == 4 else query[None], layer)

    def _rows(self, layer: int, keys: torch.Tensor) -> LayerRows:
        """The rows of a layer, as many as there are new ones: the stored tokens are there for all."""
        if layer not in self._layers:
            self._layers[layer] = self._open(layer, keys)
        rows = self._layers[layer]
        if rows.batch == 1 < len(keys) and rows.length == self.num_stored:
            rows = self._layers[layer] = rows.take(torch.zeros(len(keys), dtype=torch.long))
        return rows

    def _open(self, layer: int, keys: torch.Tensor | None = None) -> LayerRows:
        stored = None if self.stored is None or self.num_stored == 0 else self.stored.layer(layer)
        if stored is not None:
            heads, size = stored.shape.num_kv_heads, stored.shape.head_size
            dtype = getattr(torch, stored.shape.dtype)
        elif keys is not None:
            heads, size, dtype = keys.shape[1], keys.shape[3], keys.dtype
        else:
            raise ContextError(f"layer {layer} of the session holds no tokens")
        shape = RowShape(heads, size, dtype, self.device)
        far = self.settings.far(self.num_stored, self.device.type == "cpu")
        return open_rows(stored, self.num_stored, shape, far, contiguous=self.settings.contiguous)

    def _check_new(self, rows: LayerRows, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        expected = (rows.batch, rows.shape.num_kv_heads, keys.shape[2], rows.shape.head_size)
        if keys.shape != expected or values.shape != expected:
            raise ContextError(
                f"layer {layer}: keys {list(keys.shape)} and values {list(values.shape)} for a session of "
                f"{list(expected)}"
            )
        for each in (keys, values):
            if each.dtype != self.dtype or each.dtype != rows.shape.dtype or each.device.type != self.device.type:
                raise ContextError(
                    f"layer {layer}: new keys or values are {each.dtype} on {each.device}, those of the session "
                    f"{rows.shape.dtype} on {self.device}: make a session for the model as it is now"
                )

    def keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, ``[batch, num_kv_heads, tokens, head_size]``; views where possible."""
        if layer not in self._layers:
            self._layers[layer] = self._open(layer)
        parts = self._layers[layer].parts()
        return _in_order([part.keys for part in parts], parts), _in_order([part.values for part in parts], parts)

    def select(self, rows: Any) -> None:
        """Keep copies of the rows with these numbers, in this order (beams; a batch of different ends)."""
        chosen = torch.as_tensor(rows, dtype=torch.long, device="cpu")
        for layer, kept in self._layers.items():
            if len(chosen) == kept.batch:
                kept.reorder(chosen)
            else:
                self._layers[layer] = kept.take(chosen)
        self._text = self._text.select(chosen.numpy())

    def crop(self, length: int) -> None:
        """Forget all tokens from ``length`` on. Stored tokens cannot be forgotten: ``ContextError``."""
        if length < self.num_stored:
            raise ContextError(
                f"cannot crop a session to {length} tokens: {self.num_stored} of them are stored. Make a session for "
                "the shorter text with db.create_session"
            )
        if length >= max(self._lengths(), default=self.num_stored):
            return  # what is known to follow still does
        for rows in self._layers.values():
            rows.crop(min(length, rows.length))
        self._text = self._text[:length]

    def reset(self) -> None:
        """Back to the stored tokens, and to the text that was expected when the session was made."""
        self._layers, self._text = {}, self._prompt

    def __deepcopy__(self, memo: dict[int, Any]) -> ContextSession:
        """Stored tokens are shared, new ones copied."""
        other = memo[id(self)] = copy.copy(self)
        other._masks = (None, {})
        other._asked = {layer: list(queries) for layer, queries in self._asked.items()}
        other._layers = {layer: rows.take(torch.arange(rows.batch)) for layer, rows in self._layers.items()}
        return other

    # ------------------------------------------------------------------------------------------------- attention
    def attention(
        self, query: torch.Tensor, layer: int, mask: torch.Tensor | None = None, scale: float | None = None
    ) -> Partial:
        """Attention of the last tokens of a layer to all of it: output like the query, log-sum-exp in float32.

        query: ``[num_heads, new tokens, head_size]``, or with the batch in front. mask: ``[batch or 1, 1, new tokens,
        tokens]``, bool or to be added; without one every token sees itself and what is before it. scale: of the
        scores, by default ``head_size ** -0.5``.
        """
        if query.ndim == 3:
            out, lse = self.attention(query[None], layer, mask, scale)
            return out[0], lse[0]
        rows, new = self._layers[layer], query.shape[2]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if mask is None and new == 1 and self._searches(rows, layer, scale):
            return self._attention_to_found(query, layer, scale)
        mask = causal_mask(new, rows.length, query.device) if mask is None else mask
        return merge([self._attend(query, part, mask, scale) for part in rows.parts()])

    def _searched_body(self) -> SearchedBody | None:
        span = self.settings.body(self.num_stored, self.device.type == "cpu")
        if self.settings.method == "full" or span[0] >= span[1]:
            return None
        return SearchedBody(self.stored, self.settings, span, self._queries_of)

    @property
    def counts(self) -> SearchCounts:
        """What searches in this session's body read."""
        return SearchCounts() if self._body is None else self._body.counts

    def plan(self, layer: int, scale: float | None = None) -> SearchPlan:
        """What the optimizer chose for a layer, or would; ``ContextError`` where nothing is searched."""
        if self._body is None:
            raise ContextError("nothing is searched: by the settings, or because no more than a window is stored")
        size = self.stored.layer(layer).shape.head_size if self.stored is not None else 1
        return self._body.plan(layer, size**-0.5 if scale is None else scale)

    def _searches(self, rows: LayerRows, layer: int, scale: float) -> bool:
        settings, body = self.settings, self._body
        if body is None or rows.length < settings.dense_below or layer < settings.dense_layers:
            return False
        return body.searches(layer, scale)

    def _attention_to_found(self, query: torch.Tensor, layer: int, scale: float) -> Partial:
        """Of single new tokens ``[batch, num_heads, 1, head_size]``: to the window and all new tokens, and to what is
        found in the body."""
        assert self._body is not None
        near = [piece for part in self._layers[layer].parts() for piece in outside(part, self._body.span)]
        partials = [self._attend(query, part, None, scale) for part in near]
        asked = query[:, :, 0].float().cpu().numpy()
        lower = torch.stack([greatest_score(query, part.keys) for part in near]).amax(0).cpu().numpy()
        found = [self._body.attend(layer, *each, scale) for each in zip(asked, lower, strict=True)]
        out, lse = (torch.from_numpy(np.stack(each)).to(query.device)[:, :, None] for each in zip(*found, strict=True))
        return merge([*partials, (out, lse)])

    def remember(self, query: torch.Tensor, layer: int) -> None:
        """Some queries ``[batch, num_heads, new tokens, head_size]``: a graph is built from what is asked."""
        if self._body is None or not (self.settings.index == "graph" or self.settings.method == "auto"):
            return
        kept = self._asked.setdefault(layer, [])
        if sum(each.shape[1] for each in kept) < MAX_QUERIES:
            kept.append(query[0, :, :MAX_QUERIES].detach().float().cpu())

    def _queries_of(self, layer: int, head: int) -> np.ndarray:
        """Queries of a KV head that this session was asked: float32 ``[queries, head_size]``."""
        shape = self._layers[layer].shape
        asked = torch.cat(self._asked.get(layer) or [torch.zeros(shape.num_kv_heads, 0, shape.head_size)], 1)
        heads = asked.shape[0] // shape.num_kv_heads
        return asked[head * heads : (head + 1) * heads].flatten(0, 1).numpy()

    def _attend(self, query: torch.Tensor, part: Part, mask: torch.Tensor | None, scale: float) -> Partial:
        """To one part, where it is; the result is where the query is."""
        there = query.to(part.keys.device)
        out, lse = attend(there, part.keys, part.values, self._mask_of(part, mask, query.dtype), scale)
        return out.to(query.device), lse.to(query.device)

    def _mask_of(self, part: Part, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """A mask's columns for a part, to be added; None where all may be seen. Made once for all layers."""
        if mask is None:
            self._masks = (None, {})
            return None
        if self._masks[0] is not mask:
            self._masks = (mask, {})
        place = (part.positions, dtype, part.keys.device)
        if place not in self._masks[1]:
            self._masks[1][place] = _additive(mask, part, dtype)
        return self._masks[1][place]


def _additive(mask: torch.Tensor, part: Part, dtype: torch.dtype) -> torch.Tensor | None:
    pieces = [mask[..., start:stop] for start, stop in part.positions]
    columns = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)).to(part.keys.device)
    if columns.dtype == torch.bool:
        if bool(columns.all()):
            return None
        return torch.zeros(columns.shape, dtype=dtype, device=columns.device).masked_fill_(~columns, -torch.inf)
    return columns.to(dtype)


def _in_order(tensors: list[torch.Tensor], parts: list[Part]) -> torch.Tensor:
    """One tensor of all tokens by position, on the device of the first part."""
    if len(parts) == 1 and len(parts[0].positions) == 1:
        return tensors[0]
    batch, pieces = max(len(tensor) for tensor in tensors), {}
    for tensor, part in zip(tensors, parts, strict=True):
        lengths = [stop - start for start, stop in part.positions]
        for (start, _), piece in zip(part.positions, torch.split(tensor, lengths, 2), strict=True):
            pieces[start, piece.shape[2]] = piece.expand(batch, -1, -1, -1).to(tensors[0].device)
    return torch.cat([pieces[place] for place in sorted(pieces)], 2)
