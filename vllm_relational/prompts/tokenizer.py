"""Text -> token ids, with one rule: a cell is data, so markers of the chat template inside it stay plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vllm_relational.records import RelationalError, TokenSegments

# Texts handed to the tokenizer's thread pool at a time: enough to keep it busy, few enough to bound memory.
BATCH = 8192
ROW_MARK = "\x02row\x03"


class Tokenizer(Protocol):
    """What prompts need of a tokenizer.

    counts: 'exact', or a short phrase on how token counts are estimated.
    ``chat_frame`` returns the text before and after the row, the chat template applied.
    ``encode_frame`` knows special tokens; ``encode_cells`` takes them as plain text. Both return int32 ids.
    """

    counts: str

    def chat_frame(self, system: str, before: str, after: str) -> tuple[str, str]: ...

    def encode_frame(self, text: str, starts_prompt: bool) -> np.ndarray: ...

    def encode_cells(self, texts: Iterable[str]) -> TokenSegments: ...


class ModelTokenizer:
    """The tokenizer and chat template of a model, from its folder or the hub."""

    counts = "exact"

    def __init__(self, hf_tokenizer: Any) -> None:
        self._hf = hf_tokenizer
        self._literal = _literal_backend(hf_tokenizer)

    def chat_frame(self, system: str, before: str, after: str) -> tuple[str, str]:
        user = f"{before}{ROW_MARK}{after}"
        rendered = self._render(system, user) if self._hf.chat_template else f"{system}\n\n{user}\nAnswer:\n".lstrip()
        head, mark, tail = rendered.partition(ROW_MARK)
        if not mark:
            raise RelationalError("the model's chat template drops the user's text: use a model with a usable template")
        return head, tail

    def _render(self, system: str, user: str) -> str:
        from jinja2 import TemplateError

        if system:
            try:
                return self._apply([{"role": "system", "content": system}, {"role": "user", "content": user}])
            except TemplateError:  # a template without a system role
                user = f"{system}\n\n{user}"
        return self._apply([{"role": "user", "content": user}])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        # enable_thinking: templates that know it must not open a chain of thought before a one-word answer.
        text = self._hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return str(text)

    def encode_frame(self, text: str, starts_prompt: bool) -> np.ndarray:
        # A chat template writes the model's start marker itself.
        marks = starts_prompt and not self._hf.chat_template
        return np.asarray(self._hf.encode(text, add_special_tokens=marks), dtype=np.int32)

    def encode_cells(self, texts: Iterable[str]) -> TokenSegments:
        return _end_to_end(ids for batch in _batches(texts) for ids in self._encode_batch(batch))

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        if self._literal is not None:
            return [encoding.ids for encoding in self._literal.encode_batch_fast(texts, add_special_tokens=False)]
        return [self._hf.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]


class FourByteEstimate:
    """Stands in where no tokenizer is at hand: every 4 bytes of UTF-8 count as one token.

    The bytes themselves are the token ids, so forecasts still see which texts share a prefix.
    """

    counts = "estimated: 4 bytes a token"

    def chat_frame(self, system: str, before: str, after: str) -> tuple[str, str]:
        return f"{system}\n{before}", after

    def encode_frame(self, text: str, starts_prompt: bool) -> np.ndarray:
        return _four_bytes(text)

    def encode_cells(self, texts: Iterable[str]) -> TokenSegments:
        return _end_to_end(_four_bytes(text) for text in texts)


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelTokenizer:
    """The tokenizer of a model folder or hub name; ``RelationalError`` says what is missing."""
    from transformers import AutoTokenizer

    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_file():
        raise RelationalError(f"the model {model} is a file: name a folder in Hugging Face format or a hub name")
    elif model.startswith(("/", "./", "../", "~")):
        raise RelationalError(f"the model folder {model} does not exist: check the path")
    try:
        source = str(folder) if folder.is_dir() else model
        hf = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and errors of the hub client
        raise RelationalError(_load_message(model, folder.is_dir(), error)) from error
    return ModelTokenizer(hf)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise RelationalError(f"the folder {folder} holds no model: it has no config.json")


def _load_message(model: str, is_folder: bool, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if is_folder:
        return f"cannot load the tokenizer of {model}: {reason}"
    return (
        f"the model {model!r} is neither a folder here nor a model that can be fetched from the hub: check the name, "
        f"or give the path of a downloaded model ({reason})"
    )


def _literal_backend(hf_tokenizer: Any) -> Any | None:
    """A copy of the fast tokenizer that reads special tokens as plain text; None for slow tokenizers.

    Markers that the tokenizer does not call special (``<think>``, ``<tool_call>``) are markers too; added runs of
    spaces are text.
    """
    backend = getattr(hf_tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers import Tokenizer as FastTokenizer

    settings = json.loads(backend.to_str())
    for token in settings["added_tokens"]:
        token["special"] = token["special"] or not token["content"].isspace()
    literal = FastTokenizer.from_str(json.dumps(settings))
    literal.no_padding()
    literal.no_truncation()
    literal.encode_special_tokens = True
    return literal


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _end_to_end(segments: Iterator[Any]) -> TokenSegments:
    lengths, pieces = [0], [np.empty(0, np.int32)]
    for ids in segments:
        lengths.append(len(ids))
        pieces.append(np.asarray(ids, dtype=np.int32))
    return TokenSegments(np.concatenate(pieces), np.cumsum(lengths, dtype=np.int64))


def _four_bytes(text: str) -> np.ndarray:
    data = text.encode("utf-8", "replace")
    return np.frombuffer(data + b" " * (-len(data) % 4), dtype=np.int32)
