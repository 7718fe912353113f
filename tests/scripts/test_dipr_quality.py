"""Answers under several ways to attend, and the table that compares them."""

import argparse
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import dipr_quality
import dipr_quality_table
from attention import measure
from attention.trial import read_trial
from dipr_decode import Decoder

from vllm_relational.sparse.naive import Window

WINDOW = Window(sinks=16, recent=80)
WORDS = ("dense", "window", "dipr:0.2+tail", "scan:0.2+est", "top:9")


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.25}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=1024, attn_implementation="sdpa")
    return LlamaForCausalLM(config).eval()


def prompts_of(*lengths):
    random = torch.Generator().manual_seed(1)
    return [torch.randint(0, 97, (length,), generator=random) for length in lengths]


def one_by_one(model, prompt, trial, max_tokens):
    """Greedy decoding of one prompt under one trial, without any batching."""
    from transformers import DynamicCache

    cache, tokens = DynamicCache(config=model.config), []
    with torch.inference_mode():
        model(input_ids=prompt[None, :-1], past_key_values=cache)
        token = prompt[-1]
        with measure.attention_of(model, measure.Observer(trial, WINDOW, 1)):
            for _ in range(max_tokens):
                token = model(input_ids=token.view(1, 1), past_key_values=cache).logits[0, -1].argmax()
                tokens.append(int(token))
    return tokens


@pytest.mark.slow
def test_a_batch_of_ways_and_prompts_is_each_by_itself(model):
    prompts, trials = prompts_of(233, 290, 271), [read_trial(word) for word in WORDS]
    found = Decoder(model, trials, WINDOW, 1).decode(prompts, 6, [])
    for number, trial in enumerate(trials):
        for row, prompt in enumerate(prompts):
            assert found.tokens[number, row].tolist() == one_by_one(model, prompt, trial, 6), (trial.name, row)
    assert len({str(tokens) for tokens in found.tokens.tolist()}) > 1, "the ways should differ"
    assert found.read[0] == 1 and found.read[1] == 0 and 0 < found.read[2] < found.read[3] < 1


def test_decoding_ends_when_all_answers_have(model):
    (prompt,) = prompts_of(300)
    trial = read_trial("dense")
    tokens = one_by_one(model, prompt, trial, 5)
    found = Decoder(model, [trial], WINDOW, 1).decode([prompt], 5, [tokens[1]])
    assert found.tokens[0, 0].tolist() == tokens[: tokens.index(tokens[1]) + 1]
    assert dipr_quality.until([5, 6, 7], [6]) == [5]
    with pytest.raises(ValueError, match="at most 64"):
        Decoder(model, [trial], WINDOW, 1).decode([prompt], 65, [])


def answers(*scores, trial, length=4096, task="kv"):
    lines = [(length, task, seed, trial, score, 0.1, 4000, str(score)) for seed, score in enumerate(scores)]
    return pd.DataFrame(lines, columns=list(dipr_quality.FIELDS))


def test_table_pairs_samples():
    frames = [answers(1, 1, 1, 0, trial="dense"), answers(1, 0, 1, 1, trial="top:3"), answers(1, 1, trial="window")]
    found = dipr_quality_table.table(pd.concat(frames)).set_index(["length", "task", "trial"])
    top = found.loc[(4096, "kv", "top:3")]
    assert (top.samples, top.score, top.difference, top.lost, top.won, top.same_output) == (4, 0.75, 0, 1, 1, 0.5)
    assert found.loc[(4096, "kv", "window")].samples == 2 and found.loc[("all", "all", "dense")].difference == 0
    assert top.low < 0.75 < top.high and top.difference_low < 0 < top.difference_high


def test_vllm_is_compared_with_vllm():
    frames = [answers(1, 1, trial="vllm"), answers(1, 0, trial="vllm dipr alpha=0.1"), answers(0, 0, trial="dense")]
    found = dipr_quality_table.table(pd.concat(frames)).set_index(["length", "task", "trial"])
    assert found.loc[(4096, "kv", "vllm dipr alpha=0.1")].difference == -0.5


@pytest.mark.parametrize(("lost", "won", "right"), [(0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (8, 1, 0.0390625)])
def test_mcnemar(lost, won, right):
    assert dipr_quality_table.mcnemar(lost, won) == pytest.approx(right)


def test_a_run_that_ended_early_goes_on(tmp_path, capsys):
    args = argparse.Namespace(lengths=[64], batch_tokens=1024, samples=3, tasks=["single", "kv"], seconds=0)
    asked = []

    class Prompts:
        def make(self, task, seeds, length):
            samples = [dipr_quality.recall_tasks.Sample(task, "", "", "", (str(seed),)) for seed in seeds]
            return list(zip(samples, torch.tensor(seeds)[:, None], strict=True))

    def ask(prompts, task):
        asked.append((task, [int(prompt) for prompt in prompts]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"dense": ([str(int(prompt)) for prompt in prompts], 0.5)}

    with pytest.raises(KeyboardInterrupt):
        dipr_quality.run(args, Prompts(), dipr_quality.Book(tmp_path / "dipr_answers.csv"), ["dense"], ask)
    dipr_quality.run(args, Prompts(), dipr_quality.Book(tmp_path / "dipr_answers.csv"), ["dense"], ask)
    assert asked == [("single", [0, 1, 2]), ("kv", [0, 1, 2]), ("kv", [0, 1, 2])]
    written = pd.read_csv(tmp_path / "dipr_answers.csv")
    assert len(written) == 6 and (written.score == 1).all()
    dipr_quality_table.summarise(tmp_path)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[-2:]] == [["64", "dense"], ["all", "dense"]]
    assert "1.0000  +0.0000 [+0.0000, +0.0000] 1.000" in shown[-1]
    assert (tmp_path / "dipr_quality.csv").exists() and (tmp_path / "dipr_quality.svg").exists()


def test_halves_of_a_batch_are_put_together_in_order():
    assert dipr_quality.join((["a", "c", "e"], 0.3), (["b", "d"], 0.8)) == (["a", "b", "c", "d", "e"], 0.5)


def test_trials_of_an_engine():
    found = dipr_quality.vllm_trials(["{}", '{"alpha": 0.012, "tail": false}'])
    assert list(found) == ["vllm", "vllm dipr", "vllm dipr alpha=0.012 tail=False"]
    assert found["vllm"]["dense_below"] > 10**6 and found["vllm dipr"] == {"method": "scan", "dense_below": 0}
    assert found["vllm dipr alpha=0.012 tail=False"]["dense_below"] == 0
    with pytest.raises(SystemExit, match="name a sparse method"):
        dipr_quality.vllm_trials(['{"method": "auto"}'])
