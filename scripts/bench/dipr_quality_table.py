"""The table of ``dipr_quality.py``: each trial against dense on the same prompts, with intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from vllm_relational.results.agreement import wilson_interval

BASELINES = {"vllm": "vllm"}
"""The trial that a trial is compared with, by the first word of its name; others with ``dense``."""
RESAMPLES = 2000
COLUMNS = ("length", "task", "trial", "samples", "score", "low", "high", "difference", "difference_low",
           "difference_high", "lost", "won", "p_value", "same_output", "read")  # fmt: skip


def baseline_of(trial: str) -> str:
    return BASELINES.get(trial.split()[0], "dense")


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value that as many samples are lost as won (binomial, a half)."""
    both, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(both, at) for at in range(fewer + 1)) / 2**both
    return min(1.0, 2 * tail)


def bootstrap(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of paired differences, by resampling samples."""
    random = np.random.default_rng(seed)
    means = differences[random.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(1)
    return tuple(np.quantile(means, [0.025, 0.975]).tolist())


def compare(length: object, task: str, trial: str, there: pd.DataFrame, base: pd.DataFrame) -> dict[str, object]:
    """A line of the table. ``there`` and ``base``: answers of a trial and its baseline, the same samples in order."""
    right = int((there.score == 1).sum())
    low, high = wilson_interval(right, len(there))
    differences = there.score.to_numpy() - base.score.to_numpy()
    lost = int(((base.score == 1).to_numpy() & (there.score < 1).to_numpy()).sum())
    won = int(((base.score < 1).to_numpy() & (there.score == 1).to_numpy()).sum())
    ends = bootstrap(differences)
    same = float((there.output.to_numpy() == base.output.to_numpy()).mean())
    values = (length, task, trial, len(there), there.score.mean(), low, high, differences.mean(), *ends)
    return dict(zip(COLUMNS, (*values, lost, won, mcnemar(lost, won), same, there.read.mean()), strict=True))


def table(answers: pd.DataFrame) -> pd.DataFrame:
    """Lines a length, task and trial, and over all tasks (``all``) and lengths (``all``)."""
    answers = answers.drop_duplicates(["length", "task", "seed", "trial"]).fillna({"output": ""})
    keys = ["length", "task", "seed"]
    lines = []
    for trial in answers.trial.unique():
        mine = answers[answers.trial == trial].set_index(keys).sort_index()
        base = answers[answers.trial == baseline_of(trial)].set_index(keys).sort_index()
        common = mine.index.intersection(base.index)
        mine, base = mine.loc[common], base.loc[common]
        lengths, tasks = common.get_level_values(0), common.get_level_values(1)
        for length in [*sorted(set(lengths)), "all"]:
            for task in [*sorted(set(tasks)), "all"]:
                some = ((lengths == length) | (length == "all")) & ((tasks == task) | (task == "all"))
                if some.any():
                    lines.append(compare(length, task, trial, mine[some], base[some]))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def draw(found: pd.DataFrame, path: Path) -> None:
    """Difference from dense over all tasks, by tokens read, a panel a length."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dipr"
    import matplotlib.pyplot as plt

    lengths = [length for length in found.length.unique() if length != "all"]
    figure, panels = plt.subplots(1, len(lengths), figsize=(4 * len(lengths), 4), sharey=True, squeeze=False)
    for axes, length in zip(panels[0], lengths, strict=True):
        some = found[(found.length == length) & (found.task == "all") & ~found.trial.isin(["dense", "vllm"])]
        for line in some.itertuples():
            at = 0 if math.isnan(line.read) else line.read  # vLLM does not say
            ends = line.difference - line.difference_low, line.difference_high - line.difference
            spread = [[max(end, 0)] for end in ends]
            axes.errorbar([at], [line.difference], yerr=spread, fmt="o", capsize=3, label=line.trial)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set(title=f"{length:,} tokens", xlabel="body tokens read by a group")
    panels[0][0].set_ylabel("score, difference from dense (95%)")
    if panels[0][-1].get_legend_handles_labels()[1]:
        panels[0][-1].legend(fontsize=7)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def in_short(found: pd.DataFrame) -> str:
    """A line a length and trial: score over all tasks, and the task that loses most."""
    lines = [
        f"{'length':>6} {'trial':22} samples  score  difference (95%)        p      same output  read    worst task"
    ]
    tasks = found[found.task != "all"].set_index(["length", "trial"]).sort_index()
    for line in found[found.task == "all"].itertuples():
        mine = tasks.loc[[(line.length, line.trial)]]
        worst = mine.iloc[int(mine.difference.to_numpy().argmin())]
        spread = f"{line.difference:+.4f} [{line.difference_low:+.4f}, {line.difference_high:+.4f}]"
        lines.append(
            f"{line.length!s:>6} {line.trial:22} {line.samples:7} {line.score:.4f}  {spread} {line.p_value:.3f}"
            f"  {line.same_output:.3f}  {line.read:.4f}  {worst.task} {worst.difference:+.3f} of {worst.score:.3f}"
        )
    return "\n".join(lines)


def summarise(folder: Path) -> None:
    """Write ``dipr_quality.csv`` and ``dipr_quality.svg`` from the folder's answers, and print it in short."""
    answers = pd.read_csv(folder / "dipr_answers.csv")
    found = table(answers)
    if found.empty:
        print("no answers yet, or none of a baseline (dense, vllm) to compare with")
        return
    found.round(5).to_csv(folder / "dipr_quality.csv", index=False, lineterminator="\n")
    draw(found, folder / "dipr_quality.svg")
    print(in_short(found.sort_values("length", key=lambda lengths: lengths.replace("all", math.inf), kind="stable")))
