#!/usr/bin/env python3
"""Draw what ``dipr_measure.py``, ``dipr_kernels.py`` and ``dipr_engine.py`` wrote.

dipr_plots.py FOLDER       dipr_measure.svg and dipr_layers.svg beside the CSV files of ``dipr_measure.py``
dipr_plots.py FILE.csv     FILE.svg: times of ``dipr_kernels.py``, the last commit's with blocks of 64, or of
                           ``dipr_engine.py`` with default settings: of the runs with most cases the last; a run
                           is of one commit, machine, number of layers, random model and way to compile
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

FAMILIES = {
    r"dipr:[^/+]*": "DIPR",
    r"dipr:[^/]*\+tail": "DIPR + tail",
    r"dipr:[^/]*\+est": "DIPR + tail by the index",
    r"dipr:.*/L\+tail": "DIPR, alpha over length, + tail",
    r"top:.*(?<!tail)(?<!est)": "top-k",
    r"top:.*\+tail": "top-k + tail",
    r"mass:.*(?<!tail)(?<!est)": "top-p",
    r"mass:.*\+tail": "top-p + tail",
    r"pages:\d+": "pages",
    r"scan:[^@]*\+est": "all candidates of the int4 index + tail",
    r"scan:.*@4/64\+est": "all of that index in groups of 64 + tail",
}
WAYS = ("FlashAttention 3", "FlashAttention 3, fp8", "scan 0.004", "scan 0.012", "pages 2048")
BACKENDS = ("FLASH_ATTN", "FLASH_ATTN-fp8", "dipr")
LAYERS = ("dipr:1.2e-2", "dipr:4e-3", "dipr:1e-3", "top:500", "scan:4e-3+est")


def family_of(trial: str) -> str | None:
    for pattern, name in FAMILIES.items():
        if pd.Series([trial]).str.fullmatch(f"(?:{pattern})").item() and not trial.endswith("+head"):
            return name
    return None


def draw_quality(table: pd.DataFrame, path: Path) -> None:
    """Divergence over tokens read, a panel a length, mean of the texts."""
    import matplotlib.pyplot as plt

    table = table.assign(family=table.trial.map(family_of)).dropna(subset=["family"])
    if table.empty:
        print(f"{path.name}: none of these ways to attend is plotted")
        return
    lengths = sorted(table.length.unique())
    figure, panels = plt.subplots(1, len(lengths), figsize=(5 * len(lengths), 5), sharey=True, squeeze=False)
    for axes, length in zip(panels[0], lengths, strict=True):
        for number, family in enumerate(dict.fromkeys(FAMILIES.values())):
            points = table[(table.length == length) & (table.family == family)]
            points = points.groupby("trial")[["union", "kl"]].mean().sort_values("union")
            dashed = "--" if family.startswith(("top", "all")) else "-"
            axes.plot(points.union, points.kl, dashed, marker=".", color=f"C{number}", label=family)
        axes.set(xscale="log", yscale="log", xlabel="body tokens attended to by a group", title=f"{length:,} tokens")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("KL divergence of the next token from dense, nats")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def draw_layers(table: pd.DataFrame, path: Path) -> None:
    """Tokens attended to a layer, at the greatest length, mean of texts and heads."""
    import matplotlib.pyplot as plt

    table = table[table.length == table.length.max()]
    figure, axes = plt.subplots(figsize=(8, 4))
    for trial in LAYERS:
        share = table[table.trial == trial].groupby("layer").union.mean()
        axes.plot(share.index.to_numpy(), share.to_numpy(), marker=".", label=trial)
    axes.set(yscale="log", xlabel="layer", ylabel="body tokens attended to by a group")
    axes.set_title(f"{table.length.max():,} tokens")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def draw_kernels(table: pd.DataFrame, path: Path) -> None:
    """Microseconds of one layer, a panel a batch and length, each way a bar with its speed-up."""
    table = table[(table.commit == table.commit.iloc[-1]) & (table.block == 64) & table.way.isin(WAYS)]
    panels = {}
    for _, lines in table.groupby(["length", "batch"]):
        length, batch = int(lines.length.iloc[0]), int(lines.batch.iloc[0])
        lines = lines.set_index("way").reindex(WAYS[::-1])
        panels[f"{length // 1024}K x {batch}"] = lines.us, [f"{speed:.1f}x" for speed in lines.speed_up]
    draw_bars(panels, "us", path, size=(3.5, 3), room=1.2)


def draw_engine(table: pd.DataFrame, path: Path) -> None:
    """Milliseconds a token, a panel a batch and context, each backend a bar with its speed-up."""
    table = table[(table.backend != "dipr") | (table.settings == "{}")]
    of_a_run = ["commit", "machine", "layers", "logit_std", "topics", "compilation_mode", "tokens"]
    runs = [run for _, run in table.groupby(of_a_run, sort=False, dropna=False)]
    table = max(reversed(runs), key=lambda run: len(run.drop_duplicates(["context", "batch"])))
    backends = [name for name in BACKENDS[::-1] if name in set(table.backend)]
    panels = {}
    for _, lines in table.groupby(["context", "batch"]):
        context, batch = int(lines.context.iloc[0]), int(lines.batch.iloc[0])
        times = lines.groupby("backend").ms_a_token.last().reindex(backends).fillna(0.0)
        base = times.get("FLASH_ATTN", 0.0)
        labels = [f"{base / ms:.2f}x" if ms > 0 and base > 0 else "" for ms in times]
        panels[f"{context // 1024}K x {batch}"] = times, labels
    title = "{machine}, {layers} layers".format(**table.iloc[-1])
    if pd.notna(table.topics.iloc[-1]):
        title += f", {table.topics.iloc[-1]:g} topics"
    draw_bars(panels, "ms a token", path, size=(2.5, 2), room=1.4, title=title)


def draw_bars(
    panels: dict[str, tuple[pd.Series, list[str]]],
    unit: str,
    path: Path,
    size: tuple[float, float],
    room: float,
    title: str = "",
) -> None:
    """Panels by title: bars, from below, and what stands behind each. size: inches of a panel; room: its width, in
    lengths of the longest bar."""
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), squeeze=False)
    for axes, (name, (lengths, labels)) in zip(all_axes[0], panels.items(), strict=True):
        bars = axes.barh(lengths.index, lengths, color=["C1" if way[0] == "F" else "C0" for way in lengths.index])
        axes.bar_label(bars, labels, padding=3)
        axes.set(title=name, xlabel=unit, xlim=(0, room * lengths.max()))
        axes.tick_params(left=False, labelleft=axes is all_axes[0][0])
    if title:
        figure.suptitle(title, y=1.15)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def prepare() -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dipr"  # the same file for the same numbers


def plot_measured(folder: Path) -> None:
    prepare()
    draw_quality(pd.read_csv(folder / "dipr_measure.csv"), folder / "dipr_measure.svg")
    draw_layers(pd.read_csv(folder / "dipr_layers.csv"), folder / "dipr_layers.svg")


def plot_times(file: Path) -> None:
    prepare()
    table = pd.read_csv(file)
    draw = draw_engine if "ms_a_token" in table else draw_kernels
    draw(table, file.with_suffix(".svg"))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    plot_measured(given) if given.is_dir() else plot_times(given)
