#!/usr/bin/env python3
"""Make airbnb_reviews.parquet: 300 reviews joined with 25 listings, without people's names.

    python examples/make_airbnb_reviews.py SOURCE.parquet [--out airbnb_reviews.parquet]

SOURCE is the join of Inside Airbnb's reviews and listings of Albany, New York (release of 2024-11-05, CC BY 4.0), one
row a review, every column a string. The same source gives the same rows. README.md beside this file says what is
changed and why.
"""

from __future__ import annotations

import argparse
import html
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = [
    "review_id",
    "review_date",
    "comments",
    "name",
    "property_type",
    "room_type",
    "description",
    "neighborhood_overview",
]
LISTING_TEXTS = ["name", "description", "neighborhood_overview"]
TEXTS = ["comments", *LISTING_TEXTS]

SEED = 20241105
LISTINGS, REVIEWS_A_LISTING = 25, 12
COMMENT_CHARACTERS = (60, 400)
LISTING_CHARACTERS = (420, 900)  # description and neighborhood_overview together
SEEN_IN_LOWER_CASE = 3  # a capitalised word counts as ordinary if the corpus has it this often in lower case


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORD = re.compile(r"[^\W\d_]+")
CONTACT = re.compile(r"@|https?:|www\.|\.(?:com|net|org)\b|(?:\d[\s().+-]*){7,}", re.IGNORECASE)
AUTOMATED = "automated posting"
ENGLISH = words("the and was is a to we in for very of it this i my our with place stay")

# Names of some guest or host in the full table that are also English words. The first group may stand anywhere; the
# second only in lower case in a review (a listing, in Title Case and read by eye, may capitalise it). Words in doubt,
# such as Grace, Rose, Mark, Faith, Joy, Sunny, are in neither: a review that holds one is dropped.
FUNCTION_WORDS = words("a an and all at in my new no or than to you your i him")
COMMON_WORDS = words(
    "art baby cat chance coffee don ever fan free guy hang hope included job key king lock love master may miles min"
    " nature park peace set share soon summer sun tea unique use will winter won young"
)
# Words of the listings that are no person's name but places, institutions, brands and so on, read by eye in context:
# Rose, Sage and Peters are two colleges and a hospital, Madison and Lincoln an avenue and a park.
LISTING_WORDS = words(
    "AMC Adirondack Albany Amtrak Apple BA BD BR Bdrm Boast Broadway Buckingham CDTA COVID Catskills Cathedral Centered"
    " Clorox Delaware Delmar Detailing Dutch FL Featuring Firestick Forbes Governor Governors Greenwich HBO Helderberg"
    " II Institute Italian Lincoln Lyft Madison Medicine Mediterranean Megabus Memorial Monday NY NYS Normanskill"
    " Pastures Peloton Peters Playgrounds Rep Rose SUNY Sage Saint Samsung Scotland Seashore Stratton Suny Sunday"
    " UAlbany VA Walkscore Western York court courts crown jewel less page rich rises spring sunny"
)
ASCII_SIGNS = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


def clean(text: str) -> str:
    """Line-break tags to newlines, control characters to spaces, entities, curly quotes and dashes to plain signs."""
    text = html.unescape(re.sub(r"<br\s*/?>", "\n", text)).translate(ASCII_SIGNS)
    return re.sub(r"[^\S\n]+|[\x00-\x09\x0b-\x1f\x7f]", " ", text).strip()


def name_words(table: pd.DataFrame) -> frozenset[str]:
    """Every word of every guest's and host's name in the full table, in lower case."""
    given = pd.concat([table["reviewer_name"], table["host_name"]]).drop_duplicates()
    return frozenset(word.lower() for name in given for word in WORD.findall(name) if len(word) > 1)


def ordinary_words(texts: Iterable[str]) -> frozenset[str]:
    """The words that occur in lower case in several texts."""
    seen = Counter(word for text in texts for word in set(WORD.findall(text)) if word.islower())
    return frozenset(word for word, times in seen.items() if times >= SEEN_IN_LOWER_CASE)


class NameFilter:
    """Tells whether a text may hold a person's name; errs on the side of saying that it does."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.names = name_words(table)
        self.ordinary = ordinary_words(pd.concat([table[column] for column in TEXTS]).drop_duplicates())

    def listed(self, word: str, capitals: bool) -> bool:
        """Whether the word, or the word less a final s ("Lloyds"), is on the list of names."""
        if word in LISTING_WORDS and capitals:
            return False
        forms = {word.lower(), word.lower().removesuffix("s") if len(word) > 3 else word.lower()}
        return any(self._listed(form, word.islower() or capitals) for form in forms)

    def _listed(self, lower: str, may_be_common: bool) -> bool:
        if len(lower) < 2 or lower in FUNCTION_WORDS or (may_be_common and lower in COMMON_WORDS):
            return False
        return lower in self.names

    def unknown(self, word: str, capitals: bool) -> bool:
        """Whether a capitalised word is no ordinary word: an unlisted name looks like this."""
        return not word.islower() and word.lower() not in self.ordinary and not (capitals and word in LISTING_WORDS)

    def suspects(self, text: str, capitals: bool = False) -> list[str]:
        """The words that may be names. ``capitals``: the text is a listing's, written in Title Case."""
        return [w for w in WORD.findall(text) if self.listed(w, capitals) or self.unknown(w, capitals)]


def names_own_people(row: pd.Series) -> bool:
    """Whether a text of the row holds a word of its own guest's or host's name, in any case."""
    own = {w.lower() for w in WORD.findall(f"{row['reviewer_name']} {row['host_name']}")} - FUNCTION_WORDS
    return any(word.lower() in own for column in TEXTS for word in WORD.findall(row[column]))


def good_listings(table: pd.DataFrame, people: NameFilter) -> pd.DataFrame:
    """The reviews of listings that are fully described, short enough, and free of names and contacts."""
    listings = table.drop_duplicates("listing_id")
    full = (listings[COLUMNS[3:]] != "").all(axis=1)
    size = listings["description"].str.len() + listings["neighborhood_overview"].str.len()
    text = listings[LISTING_TEXTS].agg("\n".join, axis=1)
    clear = text.map(lambda t: t.isascii() and not CONTACT.search(t) and not people.suspects(t, capitals=True))
    return table[table["listing_id"].isin(listings["listing_id"][full & size.between(*LISTING_CHARACTERS) & clear])]


def is_good_comment(text: str, people: NameFilter) -> bool:
    """English as far as is cheaply told, of the wanted length, written by a guest, without names or contacts."""
    if not (text.isascii() and COMMENT_CHARACTERS[0] <= len(text) <= COMMENT_CHARACTERS[1]):
        return False
    english = len(ENGLISH & set(text.lower().split())) >= 2
    return english and AUTOMATED not in text and not CONTACT.search(text) and not people.suspects(text)


def good_reviews(table: pd.DataFrame) -> pd.DataFrame:
    people = NameFilter(table)
    kept = good_listings(table, people)
    kept = kept[kept["comments"].map(lambda text: is_good_comment(text, people))]
    return kept[~kept.apply(names_own_people, axis=1)]


def sample(reviews: pd.DataFrame) -> pd.DataFrame:
    """Equally many reviews of some listings, in random order; the same for the same input."""
    reviews = reviews.sort_values(["listing_id", "review_id"])
    counts = reviews["listing_id"].value_counts().sort_index()
    eligible = counts.index[counts >= REVIEWS_A_LISTING].to_series()
    if len(eligible) < LISTINGS:
        raise SystemExit(f"only {len(eligible)} listings have {REVIEWS_A_LISTING} usable reviews, {LISTINGS} wanted")
    chosen = reviews[reviews["listing_id"].isin(eligible.sample(LISTINGS, random_state=SEED))]
    rows = chosen.groupby("listing_id").sample(REVIEWS_A_LISTING, random_state=SEED)
    return rows.sample(frac=1, random_state=SEED)[COLUMNS]


def read_source(path: Path) -> pd.DataFrame:
    """The source with clean texts and "" for null."""
    table = pd.read_parquet(path).astype(object).fillna("")
    for column in TEXTS:
        table[column] = table[column].map(clean)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("airbnb_reviews.parquet"))
    args = parser.parse_args()
    rows = sample(good_reviews(read_source(args.source)))
    schema = pa.schema([pa.field(column, pa.string(), nullable=False) for column in COLUMNS])
    pq.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False).replace_schema_metadata(), args.out)
    print(f"{args.out}: {len(rows)} rows, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
