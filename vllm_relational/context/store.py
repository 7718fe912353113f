"""The database of contexts: a folder that any number of processes read and write.

A context is found by its token ids, as the longest prefix that a prompt shares with any context of the same
fingerprint, and it is named by them: the same tokens are stored once. ``stored.py`` says what is in a context's folder,
``commit.py`` how folders come and go, ``catalogue.py`` how they are found.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_relational.context import commit, inventory
from vllm_relational.context.catalogue import Catalogue
from vllm_relational.context.errors import ContextError, DamagedContextError, NewerFormatError
from vllm_relational.context.files import LayerShape
from vllm_relational.context.fingerprint import fingerprint_of_model
from vllm_relational.context.inventory import ContextInfo, ContextProblem, Sizes, StoreStat
from vllm_relational.context.layer_source import LayerSource, source_of, source_of_session
from vllm_relational.context.manifest import is_id, read_manifest
from vllm_relational.context.stored import ContextGoneError, StoredContext, open_stored, read_tokens
from vllm_relational.context.token_ids import as_token_ids, common_prefix
from vllm_relational.context.writing import id_of, write_context
from vllm_relational.terminal import warn

if TYPE_CHECKING:
    import torch

    from vllm_relational.context.hf import ContextCache
    from vllm_relational.context.settings import SessionSettings

Infos = list[ContextInfo]
Problems = list[ContextProblem]
_Candidates = list[tuple[int, Path]]
_Opened = weakref.WeakValueDictionary[str, StoredContext]


class DB:
    """The contexts in a folder, which is made where there is none.

    max_bytes: of all contexts together; storing one more then evicts those that were not used for longest.
    verify:    compare what is used of a context with its checksums, once in a process.
    read_only: write nothing, not even when a context was last used.

    Any number of processes and threads may read and write at a time; a kill at any moment loses no context that was
    there before. Raises ``ContextError`` where the folder cannot be used.
    """

    def __init__(
        self, path: str | Path, *, max_bytes: int | None = None, verify: bool = True, read_only: bool = False
    ) -> None:
        if not os.fspath(path):
            raise ContextError("the database has an empty path: name a folder for the contexts, or '.' for this one")
        self.path = Path(path)
        self.max_bytes, self._verify, self.read_only = max_bytes, verify, read_only
        self._check()
        writable = not read_only and os.access(self.path, os.W_OK)
        self._catalogue, self._sizes = Catalogue(self.path, writable), Sizes(self.path)
        self._open: _Opened = weakref.WeakValueDictionary()
        self._unusable: set[str] = set()  # folders of contexts found damaged

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes of one's own: opened there anew."""
        opened = partial(DB, max_bytes=self.max_bytes, verify=self._verify, read_only=self.read_only)
        return opened, (self.path,)

    def _check(self) -> None:
        limit: Any = self.max_bytes
        if limit is not None and (isinstance(limit, str) or limit < 1):
            raise ContextError(f"max_bytes is {self.max_bytes!r}: a number of bytes, 1 or more, or None for no limit")
        with commit.explained("open a database", self.path):
            exists = self.path.exists()
        if exists and not self.path.is_dir():
            raise ContextError(f"{self.path} is a file: name a folder for the contexts")
        if not exists:
            if self.read_only:
                raise ContextError(f"there is no folder {self.path}: nothing was stored there yet")
            with commit.explained("make a database", self.path):
                self.path.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------ reading
    def create_session(
        self, ids: Any, model: Any, settings: SessionSettings | None = None
    ) -> tuple[ContextCache, torch.Tensor]:
        """A session for a model of transformers, and the ids that remain to be computed: ``[1, 1 or more]``.

        ids: of the whole prompt, ``[n]`` or ``[1, n]``. The session starts with the longest stored prefix of them,
        which may end inside a stored context, and always leaves a token. A damaged context is passed over, with a
        warning. settings: how the session attends; by default to all tokens. Raises ``UnsupportedModelError`` and
        ``ContextError``.
        """
        from vllm_relational.context.hf import open_session

        token_ids = as_token_ids(ids, _vocab_size(model))
        fingerprint = fingerprint_of_model(model)
        found = self.find(token_ids[:-1], fingerprint) if len(token_ids) > 1 else None
        stored, num_stored = found or (None, 0)
        if stored is not None:
            _check_shapes(stored.shapes, model, f"context {stored.id} (delete it) holds")
        session, remaining = open_session(stored, num_stored, token_ids, model, settings)
        session.fingerprint, session.model_name = fingerprint, _name_of(model)
        return session, remaining

    def find(self, ids: Any, fingerprint: str) -> tuple[StoredContext, int] | None:
        """The context that shares the longest prefix with ``ids``, and how many tokens that is; None for none.

        With ``verify``, the keys and values of that prefix fit their checksums, which costs in proportion to it; a
        damaged context is passed over, with a warning.
        """
        token_ids = as_token_ids(ids)
        skip: set[str] = set()
        while candidates := self._candidates(token_ids, _checked_fingerprint(fingerprint), skip):
            matched, folder = max(candidates, key=itemgetter(0))  # of equal ones the first: no longer than needed
            if matched == 0:
                return None
            usable = self._usable(folder, token_ids)
            if usable is not None and usable[1]:
                self._use(usable[0])
                return usable
            skip.add(folder.name)
        return None

    def _candidates(self, token_ids: np.ndarray, fingerprint: str, skip: set[str]) -> _Candidates:
        """The neighbours of a prompt by their token ids, and how many they share with it."""
        found: list[tuple[int, Path]] = []
        for name in self._catalogue.nearest(fingerprint, token_ids, skip):
            folder = self.path / fingerprint / name
            if is_id(name):
                found.append((self._shared(folder, token_ids), folder))
        return found

    def _shared(self, folder: Path, token_ids: np.ndarray) -> int:
        stored = self._open.get(str(folder))
        if stored is not None:
            return common_prefix(stored.token_ids, token_ids)
        try:
            return common_prefix(read_tokens(folder, read_manifest(folder)), token_ids)
        except (OSError, ContextError):
            return len(token_ids)  # to be looked at: it is gone or damaged

    def _usable(self, folder: Path, token_ids: np.ndarray) -> tuple[StoredContext, int] | None:
        """A context, and how many leading tokens it shares, which are whole; None for one that is gone, and with a
        warning for one that is damaged, or of a newer version."""
        if str(folder) in self._unusable:
            return None
        try:
            stored = open_stored(folder, self._open)
            matched = common_prefix(stored.token_ids, token_ids)
            if self._verify:
                stored.verify(matched)
            return stored, matched
        except ContextGoneError:
            return None
        except (DamagedContextError, NewerFormatError) as error:
            self._unusable.add(str(folder))
            self._open.pop(str(folder), None)
            warn(f"{error}; it is not used (vllm-relational context verify says what else is damaged)", stacklevel=3)
            return None

    def _use(self, stored: StoredContext) -> None:
        if not self.read_only:
            stored.touch()

    def open(self, id_or_name: str) -> StoredContext:
        """The context of an id, the beginning of one, or a name; verified as the database says. Raises
        ``ContextError``."""
        stored = open_stored(inventory.find_folder(self.path, id_or_name), self._open)
        if self._verify:
            stored.verify()
        self._use(stored)
        return stored

    # ------------------------------------------------------------------------------------------------ writing
    def import_(self, ids: Any, kv: Any, model_or_fingerprint: Any, name: str | None = None) -> str:
        """Store keys and values that were computed for ``ids``; returns the id of the context.

        kv: a list over layers of (keys, values), tensors or arrays ``[num_kv_heads, n, head_size]`` (bfloat16 as
        uint16), a cache of transformers that holds exactly these tokens, or a file of ``context export``.
        Tokens that are stored already are not stored again; a damaged context of them is replaced. Raises
        ``ContextError``.
        """
        is_text = isinstance(model_or_fingerprint, str)
        token_ids = as_token_ids(ids, None if is_text else _vocab_size(model_or_fingerprint))
        fingerprint = model_or_fingerprint if is_text else fingerprint_of_model(model_or_fingerprint)
        if isinstance(kv, str | Path):
            from vllm_relational.context.exchange import read_export

            exported = read_export(Path(kv))
            exported.check(token_ids, fingerprint)
            return self._put(token_ids, exported.source, fingerprint, exported.model, name)
        model, source = "" if is_text else _name_of(model_or_fingerprint), source_of(kv, len(token_ids))
        if not is_text:
            _check_shapes(source.shapes, model_or_fingerprint, "there are")
        return self._put(token_ids, source, fingerprint, model, name)

    def store(self, session: Any, name: str | None = None) -> str:
        """Store all tokens that a session holds; returns the id of the context.

        Raises ``ContextError``, also for tokens that were computed by sparse attention.
        """
        fingerprint = getattr(session, "fingerprint", None)
        if fingerprint is None:
            raise ContextError("only sessions of create_session can be stored: for others use import_(ids, kv, model)")
        model = getattr(session, "model", None)
        if model is not None and fingerprint_of_model(model) != fingerprint:
            raise ContextError(
                "the model was changed since the session was made (weights, adapters or dtype), so its keys may "
                "not all be of one model: make a new session with db.create_session"
            )
        held = getattr(session, "session", session)
        if held.counts.searches:
            raise ContextError(
                "tokens of this session were computed by sparse attention, so their keys are approximate: store the "
                "session before it generates, or one that attends in full"
            )
        source = source_of_session(held, len(session.layers))
        return self._put(as_token_ids(held.ids), source, fingerprint, session.model_name, name)

    def _put(self, token_ids: np.ndarray, source: LayerSource, fingerprint: str, model: str, name: str | None) -> str:
        self._check_put(source, name)
        folder = self.path / _checked_fingerprint(fingerprint) / id_of(token_ids, fingerprint)
        with commit.explained("store a context", self.path):
            if not self._is_there(folder, name):
                commit.tidy(self.path)
                commit.check_room(self.path, source.num_bytes)
                with commit.new_folder(self.path) as written:
                    write_context(written, token_ids, source, fingerprint, model, name)
                    self._commit(written, folder, name)
        return folder.name

    def _check_writable(self) -> None:
        if self.read_only:
            raise ContextError(f"{self.path} was opened to be read only")

    def _check_put(self, source: LayerSource, name: str | None) -> None:
        self._check_writable()
        if name is not None:
            inventory.check_name(name)
        if self.max_bytes is not None and source.num_bytes > self.max_bytes:
            raise ContextError(
                f"a context of {source.num_bytes:,} bytes does not fit into a limit of {self.max_bytes:,}: raise it"
            )

    def _is_there(self, folder: Path, name: str | None) -> bool:
        """Whether the tokens are stored already, whole; the context then has the name and counts as used."""
        stored = self._whole(folder)
        if stored is None:
            if name is not None:
                inventory.check_free(folder, name)
            return False
        stored.touch()
        if name is None:
            return True
        with commit.locked(self.path):
            there = folder.exists()  # not deleted meanwhile
            if there:
                inventory.add_name(folder, name)
        return there

    def _whole(self, folder: Path) -> StoredContext | None:
        try:
            stored = StoredContext(folder)
            stored.verify()
            return stored
        except (ContextGoneError, DamagedContextError):
            return None

    def _commit(self, written: Path, folder: Path, name: str | None) -> None:
        """Put a context in its place. Where another process was faster, its context stays."""
        with commit.locked(self.path):
            if self._whole(folder) is not None:
                if name is not None:
                    inventory.add_name(folder, name)
                return
            if name is not None:
                inventory.check_free(folder, name)
            if folder.exists():
                commit.take_out(self.path, folder)
            commit.put_in_place(written, folder)
            self._unusable.discard(str(folder))
            self._open.pop(str(folder), None)
            self._evict(folder)
        commit.empty_trash(self.path)

    def _evict(self, new: Path) -> None:
        """Delete what was not used for longest until the limit holds; never the new one. Under the lock."""
        if self.max_bytes is None:
            return
        by_use = self._sizes.by_use()
        total = sum(size for _, size in by_use)
        for folder, size in by_use:
            if total > self.max_bytes and folder != new:
                commit.take_out(self.path, folder)
                total -= size

    def name(self, id_or_name: str, name: str) -> None:
        """Give a context one more name. Raises ``ContextError`` for one that another context of the model has."""
        inventory.check_name(name)
        self._check_writable()
        with commit.explained("name a context", self.path), commit.locked(self.path):
            inventory.add_name(inventory.find_folder(self.path, id_or_name), name)

    def delete(self, id_or_name: str) -> str:
        """Delete a context; returns its id. Sessions that use it go on. Raises ``ContextError`` where there is none."""
        self._check_writable()
        with commit.explained("delete a context", self.path), commit.locked(self.path):
            folder = inventory.find_folder(self.path, id_or_name)
            commit.take_out(self.path, folder)
        commit.empty_trash(self.path)
        return folder.name

    # ------------------------------------------------------------------------------------------------ looking
    def list(self) -> Infos:
        """All contexts, the last used one first; those that cannot be read come last, with their problem."""
        infos = filter(None, map(inventory.info_of, inventory.folders_of(self.path)))
        return sorted(infos, key=lambda info: (-info.used, info.id))

    def stat(self) -> StoreStat:
        """Sums over all contexts."""
        infos, room = self.list(), os.statvfs(self.path)
        return StoreStat(
            path=str(self.path),
            num_contexts=len(infos),
            num_tokens=sum(info.num_tokens for info in infos),
            num_bytes=sum(info.num_bytes for info in infos),
            num_fingerprints=len({info.fingerprint for info in infos}),
            free_bytes=room.f_bavail * room.f_frsize,
            max_bytes=self.max_bytes,
            problems=sum(info.problem is not None for info in infos),
        )

    def verify(self, id_or_name: str | None = None) -> Problems:
        """Read every file of a context, or of all, and compare it with its checksum; what is wrong.

        Of all: also removes what killed processes left, and makes the catalogue again.
        """
        if id_or_name is not None:
            return list(self._problems([inventory.find_folder(self.path, id_or_name)]))
        if not self.read_only:
            with commit.explained("tidy up", self.path):
                commit.tidy(self.path)
        self._catalogue.rebuild()
        return list(self._problems(inventory.folders_of(self.path)))

    def _problems(self, folders: Iterable[Path]) -> Iterator[ContextProblem]:
        for folder in folders:
            try:
                yield from (ContextProblem(folder.name, text) for text in StoredContext(folder).problems())
            except ContextGoneError:
                continue
            except ContextError as error:
                yield ContextProblem(folder.name, str(error))


def _checked_fingerprint(fingerprint: str) -> str:
    if not is_id(fingerprint):
        raise ContextError(f"{fingerprint!r} is no fingerprint: 32 hexadecimal digits, see fingerprint_of_model")
    return fingerprint


def _check_shapes(shapes: list[LayerShape], model: Any, found: str) -> None:
    """Raise ``ContextError`` for keys and values that cannot be the model's, though somebody said so."""
    layers, dtype = model.config.get_text_config().num_hidden_layers, str(model.dtype).removeprefix("torch.")
    if len(shapes) != layers or {shape.dtype for shape in shapes} != {dtype}:
        kinds = ", ".join(sorted({shape.dtype for shape in shapes}))
        raise ContextError(
            f"{found} keys and values of {len(shapes)} layers in {kinds}; the model has {layers} in {dtype}"
        )


def _vocab_size(model: Any) -> int | None:
    """Ids that the model has embeddings for."""
    embeddings = model.get_input_embeddings()
    return int(embeddings.weight.shape[0]) if hasattr(embeddings, "weight") else None


def _name_of(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or model.config.model_type)
