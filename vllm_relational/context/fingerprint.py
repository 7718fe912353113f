"""What the keys and values of a model depend on, as one name: equal names, equal keys and values.

That is the format, the dtype, the config (rotary embedding, shape of the heads, kinds of the layers), and every
weight. A transformers model is refused whose keys depend on more than the tokens up to theirs.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from vllm_relational.context.errors import ContextError, UnsupportedModelError
from vllm_relational.files.atomic import write_whole
from vllm_relational.records import RelationalError

if TYPE_CHECKING:
    import torch

FORMAT = 1
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")  # su: an old name of longrope
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
READ_BYTES = 1 << 22
CACHE_FILE = "weights.json"

# What a config says beside the model itself; everything else in it counts.
_NO_MATTER = {
    "architectures", "attn_implementation", "dtype", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

_BOTH_WAYS = "its tokens also attend to those behind them, so keys change with what follows"

NUM_SAMPLES = 64  # numbers of a weight that are compared at every use


class _ReadModel(NamedTuple):
    """A model as it was when its weights were read: what shows changes, a few numbers of every weight, and a digest of
    them: a change through ``weight.data`` shows in nothing else."""

    state: Any
    samples: list[torch.Tensor]
    sampled: str
    fingerprint: str


_of_models: weakref.WeakKeyDictionary[Any, _ReadModel] = weakref.WeakKeyDictionary()


def fingerprint_of_model(model: Any) -> str:
    """Of a transformers model as it stands in memory: 32 hexadecimal digits.

    Reads all weights the first time, and again when they have changed: exchanged, changed in place, or through
    ``weight.data`` in more than a few places. Raises ``UnsupportedModelError``.
    """
    check_supported(model.config)
    _check_causal(model)
    state, known = state_of_weights(model), _of_models.get(model)
    if known is None or known.state != state or known.sampled != _sampled(known.samples):
        settings = _settings(model.config.to_dict())
        digest = _digest({"model": settings, "dtype": str(model.dtype), "weights": _weights_of(model)})
        samples = _samples_of(model)
        _of_models[model] = known = _ReadModel(state, samples, _sampled(samples), digest)
    return known.fingerprint


def fingerprint_of_folder(path: str | Path, dtype: str, **more: Any) -> str:
    """Of a model's folder, ``config.json`` and weights, as an engine loads it with this dtype: 32 hexadecimal digits.

    more: whatever else keys and values depend on there, as JSON values. The digests of the weights are remembered in
    the user's cache folder by path, size and time. Raises ``ContextError`` for a folder without a model. Refuses no
    model: what an engine can use again, its own rules say.
    """
    folder = Path(path)
    config = _read_config(folder)
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise ContextError(f"{folder} holds no weights ({', '.join(WEIGHT_FILES)}): name the folder of a model")
    weights = _digests_of(files)
    return _digest({"config": config, "dtype": dtype, "weights": weights, "more": more, "folder": True})


def check_supported(config: Any) -> None:
    """Raise ``UnsupportedModelError`` where keys and values do not follow from the token ids up to theirs.

    config: of a transformers model.
    """
    for kind in rope_kinds(getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        if kind in LENGTH_DEPENDENT_ROPE:
            _refuse(
                f"its rotary embedding ({kind}) depends on the length of the whole context, so stored keys would be "
                "wrong in a longer one"
            )
    if kinds := _layers_that_drop(config):
        _refuse(f"it has layers of {', '.join(sorted(kinds))}, which do not keep the keys and values of all tokens")
    if getattr(config, "is_encoder_decoder", False):
        _refuse("its decoder reads an encoder, of which token ids say nothing")
    if getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", None):
        _refuse(_BOTH_WAYS)
    if config.get_text_config() is not config:
        _refuse("it reads more than text, and token ids do not say what an image or a sound holds")


def _check_causal(model: Any) -> None:
    """Encoders with a head say it in their layers. Where others have cross-attention, that is not causal either."""
    causal = {getattr(module, "is_causal", None) for module in model.modules()}
    if False in causal and True not in causal:
        _refuse(_BOTH_WAYS)


def _refuse(why: str) -> None:
    raise UnsupportedModelError(f"contexts of this model cannot be stored: {why}")


def _layers_that_drop(config: Any) -> set[str]:
    if kinds := getattr(config, "layer_types", None):
        return set(kinds) - {"full_attention"}
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return {"sliding_attention"} if slides else set()


def rope_kinds(*settings: Any) -> Iterator[str]:
    """Kinds of rotary embeddings: one for all layers, or one for each kind of layer."""
    for setting in settings:
        if not isinstance(setting, Mapping):
            continue
        yield str(setting.get("rope_type") or setting.get("type") or "default")
        yield from rope_kinds(*setting.values())


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if _matters(name)}


def _matters(name: str) -> bool:
    return name not in _NO_MATTER and not name.startswith("_") and not name.endswith("_token_id")


def _digest(facts: dict[str, Any]) -> str:
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=_as_json)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _as_json(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


# ---------------------------------------------------------------------------------------------------- in memory
def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights and buffers, such as the frequencies of the rotary embedding, by name."""
    yield from sorted(model.named_parameters())
    yield from sorted(model.named_buffers())


def state_of_weights(model: Any) -> Any:
    """Changes when a weight is exchanged or changed in place, or another adapter is used."""
    found = []
    for module in model.modules():  # every forward pass of a session asks: names would take three times as long
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found.append((tensor.data_ptr(), _version_of(tensor)))
    return found, _adapters(model), str(model.dtype)


def _version_of(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _samples_of(model: Any) -> list[torch.Tensor]:
    """Views of a few numbers of each weight, which show what becomes of it."""
    weights = [tensor.detach() for _, tensor in _tensors(model) if tensor.numel() and tensor.is_contiguous()]
    return [weight.view(-1)[:: max(weight.numel() // NUM_SAMPLES, 1)] for weight in weights]


def _sampled(samples: list[torch.Tensor]) -> str:
    import torch

    kinds: dict[Any, list[torch.Tensor]] = {}
    for sample in samples:
        kinds.setdefault((sample.dtype, sample.device), []).append(sample)
    digest = xxhash.xxh3_64()
    for alike in kinds.values():
        digest.update(_bytes_of("", torch.cat(alike)))
    return digest.hexdigest()


def _adapters(model: Any) -> str:
    """Which adapters of PEFT are at work, in layers that have any, and how strongly."""
    layers = [module for module in model.modules() if isinstance(module.__dict__.get("merged_adapters"), list)]
    return str(
        [
            (layer.active_adapters, layer.merged_adapters, layer.disable_adapters, getattr(layer, "scaling", None))
            for layer in layers
        ]
        or ""
    )


def _weights_of(model: Any) -> str:
    digest = xxhash.xxh3_128(_adapters(model).encode())
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(_bytes_of(name, tensor))
    return digest.hexdigest()


def _bytes_of(name: str, tensor: torch.Tensor) -> memoryview:
    import torch

    try:
        return tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data
    except (RuntimeError, TypeError) as error:  # on the device meta, or of a class that hides its bytes
        raise UnsupportedModelError(
            f"contexts of this model cannot be stored: its weight {name} cannot be read ({error}); load it without "
            "offloading"
        ) from error


# ---------------------------------------------------------------------------------------------------- on the disk
def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ContextError(f"{folder} is no folder of a model: config.json cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ContextError(f"{folder} is no folder of a model: config.json holds no object")
    return _settings(config)


def _digests_of(files: Iterable[Path]) -> list[str]:
    known = _known_digests()
    found = {_identity(file): file for file in files}
    missing = {key: _digest_of_file(file) for key, file in found.items() if key not in known}
    if missing:
        _remember({**known, **missing})
    return [f"{file.name} {known.get(key) or missing[key]}" for key, file in found.items()]


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns}"


def _digest_of_file(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while data := opened.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vllm-relational" / CACHE_FILE


def _known_digests() -> dict[str, str]:
    try:
        known = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fits = isinstance(known, dict) and all(isinstance(value, str) and len(value) == 32 for value in known.values())
    return known if fits else {}


def _remember(digests: dict[str, str]) -> None:
    """A cache that cannot be written costs time, no more."""
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache_file(), json.dumps(digests, indent=1).encode())
    except (OSError, RelationalError):
        pass
