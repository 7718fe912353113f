"""The seven tables: hit rates and rows per second by order, as a page and as the chart of the README."""

from __future__ import annotations

from html import escape

from pages.measurements import Row, conditions, fixed, one, page, percent, read, table, times

WIDTH, LEFT, RIGHT, TOP, BAND, BAR = 860, 200, 250, 62, 46, 14
COLOURS = {"fixed": "#9db7d5", "tree": "#1f6fb2"}


def by_table() -> dict[str, dict[str, Row]]:
    """By name of the table, greatest gain first, and by order: a line of ``orders.csv``."""
    rows = read("orders")
    names = dict.fromkeys(row["table"] for row in rows)
    found = {
        name.removesuffix(".parquet"): {
            order: one(rows, table=name, order=order) for order in ("original", "fixed", "tree")
        }
        for name in names
    }
    return dict(sorted(found.items(), key=lambda item: -float(item[1]["tree"]["speed_up"])))


def span() -> str:
    """The least and the greatest speed-up of ``tree``, for the README."""
    gains = [float(orders["tree"]["speed_up"]) for orders in by_table().values()]
    return f"{fixed(min(gains), 1)} to {fixed(max(gains), 1)} times"


def orders_page() -> str:
    """Rows per second and hit rates of three orders on seven tables."""
    found = by_table()
    first = [line["original"] for line in found.values()]
    return page(
        "Seven tables, three orders",
        "Read this to see how much faster your table may be answered when its rows and fields are reordered, and "
        "which tables gain little.",
        "![rows per second against the original order](orders.svg)",
        f"{conditions(first, 'orders', 'orders')} All columns are sent, the answer is one token, every run starts "
        "from a cold cache, and all orders of a table run on one engine. Rows are a random sample.",
        "## Rows per second",
        table(
            ["table", "rows", "tokens per row", "original", "`fixed`", "`tree`", "gain of `fixed`", "gain of `tree`"],
            [_speeds(name, orders) for name, orders in found.items()],
        ),
        "## Prompt tokens served from the KV cache",
        "*In repeated cells* is the share of tokens in headers and in cells that occurred before: the column `ceiling` "
        "of the CSV, by which reports now mean another bound. Values that begin alike can be served beyond it. *Off* "
        "is the largest distance of the forecast from what vLLM counted, in points.",
        table(
            ["table", "original", "`fixed`", "`tree`", "in repeated cells", "off"],
            [_hits(name, orders) for name, orders in found.items()],
        ),
        "The gain is what the table repeats: `netflix_titles` and `wide_airbnb_edinburgh` hold few long cells that "
        "repeat. Where a prompt already names the repeated columns first there is nothing left to gain. Answers of "
        "more than a few tokens add decode time that no order saves.",
    )


def _speeds(name: str, orders: dict[str, Row]) -> list[str]:
    first, fixed_order, tree = orders["original"], orders["fixed"], orders["tree"]
    speeds = [fixed(row["rows_per_second"]) for row in (first, fixed_order, tree)]
    length = fixed(int(first["prompt_tokens"]) / int(first["rows"]))
    return [name, fixed(first["rows"]), length, *speeds, times(fixed_order["speed_up"]), times(tree["speed_up"])]


def _hits(name: str, orders: dict[str, Row]) -> list[str]:
    rows = [orders["original"], orders["fixed"], orders["tree"]]
    off = max(abs(float(row["hit_rate_measured"]) - float(row["hit_rate_predicted"])) for row in rows)
    hits = [percent(row["hit_rate_measured"]) for row in rows]
    return [name, *hits, percent(rows[0]["ceiling"]), fixed(off * 100, 2)]


# ----------------------------------------------------------------------------------------------------------- chart
def chart() -> str:
    """An SVG: one band per table, speed-up of ``fixed`` and ``tree`` over the original order."""
    found = by_table()
    height = TOP + BAND * len(found) + 40
    scale = (WIDTH - LEFT - RIGHT) / max(float(orders["tree"]["speed_up"]) for orders in found.values())
    bands = [_band(i, name, orders, scale) for i, (name, orders) in enumerate(found.items())]
    tree = next(iter(found.values()))["tree"]
    measured = f"{tree['machine']}, shape of Llama-3-8B, one-token answers, commit {tree['commit']}"
    line = LEFT + scale
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
                'font-size="13">',
                f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
                _text(16, 24, "Rows per second, as a multiple of the original order", size=16),
                *_legend(),
                *bands,
                f'<line x1="{line:.1f}" y1="{TOP - 4}" x2="{line:.1f}" y2="{height - 34}" stroke="#888888" '
                'stroke-dasharray="4 3"/>',
                _text(16, height - 12, measured, "#555555"),
                "</svg>",
            ]
        )
        + "\n"
    )


def _legend() -> list[str]:
    places = {"tree": (16, "tree (default)"), "fixed": (140, "fixed: one column order for all rows")}
    shapes = [
        f'<rect x="{x}" y="36" width="12" height="12" fill="{COLOURS[order]}"/>' for order, (x, _) in places.items()
    ]
    return shapes + [_text(x + 18, 47, label) for x, label in places.values()] + [_text(400, 47, "dashes: original")]


def _band(number: int, name: str, orders: dict[str, Row], scale: float) -> str:
    top = TOP + BAND * number
    parts = [_text(LEFT - 10, top + BAR + 6, name, anchor="end")]
    for i, order in enumerate(("tree", "fixed")):
        row, y = orders[order], top + i * (BAR + 2)
        width = float(row["speed_up"]) * scale
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[order]}"/>')
        parts.append(_text(LEFT + width + 6, y + 12, _label(row, orders["original"], order)))
    return "\n".join(parts)


def _label(row: Row, original: Row, order: str) -> str:
    gain = times(row["speed_up"])
    if order != "tree":
        return gain
    return f"{gain}: {fixed(original['rows_per_second'])} to {fixed(row['rows_per_second'])} rows/s"


def _text(x: float, y: float, text: str, fill: str = "#222222", size: int = 13, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )
