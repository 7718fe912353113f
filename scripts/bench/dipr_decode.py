"""Greedy answers of a Hugging Face model to a batch of long prompts, decoded under several ways to attend at once.

Each prompt but for its last token is prefilled once, densely; its keys and values serve all ways. The last token
and the answer are decoded under each way. Beside what a way keeps of the prompt, nothing differs between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from attention import measure, selection
from attention.trial import Trial

from vllm_relational.sparse.naive import Window

ROOM = selection.COLUMNS
"""Columns behind the prompts for the last token and the answer."""
_INDEXED = ("scan", "scan_window", "scan_global", "estimated", "pages", "pages_middle", "pages_box")


@dataclass
class Answers:
    """tokens: int ``[num_trials, batch, max_tokens]``; read: share of the body's tokens that a group attends to when
    it decodes the prompt's last token, a trial, mean over sparse layers."""

    tokens: torch.Tensor
    read: list[float]


class Decoder:
    """Keys and values of a batch of prompts and, a trial, of the tokens decoded so far."""

    def __init__(self, model: Any, trials: Sequence[Trial], window: Window, dense_layers: int) -> None:
        self.model, self.trials, self.window, self.dense_layers = model, list(trials), window, dense_layers
        self.indexes = {trial.index for trial in trials if trial.rule in _INDEXED or trial.tail == "index"}

    @torch.inference_mode()
    def decode(self, prompts: Sequence[torch.Tensor], max_tokens: int, stops: Sequence[int]) -> Answers:
        """Answers to prompts of token ids; behind a stop token an answer is not to be read. ``ValueError`` where an
        answer may be longer than ``ROOM`` leaves space for."""
        if max_tokens > ROOM:
            raise ValueError(f"answers of {max_tokens} tokens: at most {ROOM} fit")
        self._prefill(prompts)
        batch, ways = len(prompts), len(self.trials)
        token = torch.stack([prompt[-1] for prompt in prompts]).to(self.model.device).repeat(ways)
        answers, self.read = [], [[] for _ in self.trials]
        ends = torch.tensor(list(stops), device=self.model.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        for self.step in range(max_tokens):
            token = self._forward(token)
            answers.append(token.view(ways, batch))
            ended |= torch.isin(token, ends)
            if ended.all():
                break
        shares = [sum(float(share) for share in shares) / max(len(shares), 1) for shares in self.read]
        return Answers(torch.stack(answers, -1).cpu(), shares)

    def _prefill(self, prompts: Sequence[torch.Tensor]) -> None:
        from transformers import DynamicCache

        device, self.layers, self.coded = self.model.device, [], []
        self.lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        columns = -(-max(map(len, prompts)) // ROOM) * ROOM
        for row, prompt in enumerate(prompts):
            cache = DynamicCache(config=self.model.config)
            self.model(input_ids=prompt[None, :-1].to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            for number, layer in enumerate(cache.layers):
                if row == 0:
                    size = (len(prompts), layer.keys.shape[1], columns + ROOM, layer.keys.shape[3])
                    self.layers.append([torch.zeros(size, device=device) for _ in range(2)])
                for there, part in zip(self.layers[number], (layer.keys, layer.values), strict=True):
                    there[row, :, : len(prompt) - 1] = part[0]
        for key, _ in self.layers:
            self.coded.append({index: index.encode(key) for index in self.indexes})
        self._place(columns, device)
        kv_heads, head_size = self.layers[0][0].shape[1], self.layers[0][0].shape[3]
        size = (len(self.layers), len(self.trials), 2, len(prompts), kv_heads, ROOM, head_size)
        self.own = torch.zeros(size, device=device)

    def _place(self, columns: int, device: torch.device) -> None:
        """The position of every column: the prompt's tokens, nothing, the decoded tokens."""
        prompt = torch.arange(columns, device=device).expand(len(self.lengths), -1)
        prompt = torch.where(prompt < self.lengths[:, None], prompt, selection.NOWHERE)
        behind = self.lengths[:, None] + torch.arange(ROOM, device=device)
        self.columns = torch.cat([prompt, behind], 1)

    def _forward(self, token: torch.Tensor) -> torch.Tensor:
        """The next token of every trial and prompt, trials first."""
        positions = (self.lengths + self.step).repeat(len(self.trials))[:, None]
        with measure.attention_of(self.model, self._attend):
            result = self.model(input_ids=token[:, None], position_ids=positions, use_cache=False)
        found: torch.Tensor = result.logits[:, -1].argmax(-1)
        return found

    def _attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of one token a row; rows are trials x prompts, key and value are the token's own."""
        layer, batch = module.layer_idx, len(self.lengths)
        outputs = []
        for number, trial in enumerate(self.trials):
            rows = slice(number * batch, (number + 1) * batch)
            for at, part in enumerate((key, value)):
                self.own[layer, number, at, :, :, self.step] = part[rows, :, 0]
                self.layers[layer][at][:, :, -ROOM:] = self.own[layer, number, at]
            outputs.append(self._attend_by(number, trial, layer, query[rows], scaling))
        return torch.cat(outputs).flatten(1, 2).transpose(1, 2).to(query.dtype), None

    def _attend_by(self, number: int, trial: Trial, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        key, value = self.layers[layer]
        positions = self.lengths[:, None] + self.step
        grouped = query.unflatten(1, (key.shape[1], -1))
        coded = self.coded[layer]
        scored = selection.Scored(grouped, key, self.columns, positions, scale, self.window, coded)
        dense = layer < self.dense_layers
        found = (measure.DENSE if dense else trial).attend(scored, value, int(self.columns.shape[1]) - ROOM)
        if self.step == 0 and not dense:
            body = scored.body(trial.index.group)
            group = found.kept.any(2, keepdim=True) & body
            share = group.sum() / (body.sum() * key.shape[1]).clamp(min=1)
            self.read[number].append(share)
        return found.output
