"""The default embedder: sentence-transformers in this process, loaded at the first text."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vllm_relational.records import RelationalError

SPECIAL_TOKENS = 4  # that a model puts around a text, at most


class LocalEmbedder:
    """An ``Embedder`` over a sentence-transformers model; vectors have length 1.

    name:       folder or hub name.
    batch_size: texts a forward pass.
    device:     'cpu', 'cuda'...; None lets the library choose.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str | None = None) -> None:
        self.name, self.batch_size, self.device = name, batch_size, device
        self._model: Any = None

    def __call__(self, texts: list[str]) -> np.ndarray:
        vectors: np.ndarray = self.model.encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32, copy=False)

    def reads_whole(self, texts: list[str]) -> np.ndarray:
        """False where the model cuts a text: bool ``[len(texts)]``."""
        longest = self.model.max_seq_length
        if longest is None:
            return np.ones(len(texts), bool)
        prompt = self.model.prompts.get(self.model.default_prompt_name) or ""
        texts = [prompt + text for text in texts]  # as ``encode`` puts it before each text
        # A token is a byte at least: short texts need no tokenizer.
        whole = np.array([len(text.encode()) <= longest - SPECIAL_TOKENS for text in texts], bool)
        unsure = np.flatnonzero(~whole)
        for start in range(0, len(unsure), self.batch_size):
            places = unsure[start : start + self.batch_size]
            encoded = self.model.tokenizer([texts[place] for place in places], truncation=False, verbose=False)
            whole[places] = [len(ids) <= longest for ids in encoded["input_ids"]]
        return whole

    def release(self) -> None:
        """Drop the model, so that its memory is free for an engine; the next text loads it again."""
        if self._model is None:
            return
        self._model = None
        gc.collect()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def model(self) -> Any:
        """The model behind it, loaded when first needed."""
        if self._model is None:
            self._model = _load(self.name, self.device)
        return self._model


def load_embedder(name: str | Path, batch_size: int = 64, device: str | None = None) -> LocalEmbedder:
    """An embedder by folder or hub name; the model is loaded at its first text.

    Raises ``RelationalError`` at once where the library is missing, the batch is empty or the folder is no model.
    """
    name = str(name)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise RelationalError(f"the embedding model {name} needs a library: pip install 'vllm-relational[semantic]'")
    if batch_size < 1:
        raise RelationalError(f"batch_size of the embedder is {batch_size}: give 1 or more")
    if Path(name).is_dir() and not Path(name, "config.json").exists():
        raise RelationalError(f"the folder {name} holds no embedding model: it has no config.json")
    return LocalEmbedder(name, batch_size, device)


def _load(name: str, device: str | None) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else a warning where the engine forks later
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    bars: Any = logging  # untyped
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        return SentenceTransformer(name, device=device)
    except Exception as error:  # the library raises many kinds: no such repository, no network, a damaged file
        raise RelationalError(
            f"cannot load the embedding model {name}: {_first_line(error)} Name its folder, or a hub name"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
