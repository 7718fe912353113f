"""Tasks over long texts: the same for a seed, of the size asked for, and answered by searching their text."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import recall_tasks
from recall_tasks import TASKS, Haystack, make, score, solve

PASSAGES = [f"Passage {at} tells of the {recall_tasks.THINGS[at % 20]} near the river." for at in range(500)]


def count(text):
    """Four characters a token."""
    return -(-len(text) // 4)


HAYSTACK = Haystack(PASSAGES, count)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("budget", [700, 4000])
def test_samples_are_solvable_and_of_the_size_asked_for(task, budget):
    for seed in range(8):
        sample = make(task, seed, budget, HAYSTACK, count)
        assert score(sample, solve(sample)) == 1
        assert 0.85 * budget < count(sample.text) <= budget
        assert sample.task == task and score(sample, "I do not know.") == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_is_a_sample(task):
    assert make(task, 3, 900, HAYSTACK, count) == make(task, 3, 900, HAYSTACK, count)
    assert len({make(task, seed, 900, HAYSTACK, count).text for seed in range(6)}) == 6


@pytest.mark.parametrize("task", TASKS)
def test_question_and_cue_do_not_hold_the_answer(task):
    for seed in range(8):
        sample = make(task, seed, 900, HAYSTACK, count)
        assert score(sample, sample.question + sample.cue) == 0


def test_needles_lie_anywhere_in_their_order():
    places = set()
    for seed in range(200):
        lines = recall_tasks.hide(random.Random(seed), ["hay"] * 9, ["one", "two"]).split("\n")
        assert len(lines) == 11 and lines.index("one") < lines.index("two")
        places.add(lines.index("one"))
    assert places == set(range(9))


def test_part_of_the_answers_is_part_of_the_score():
    sample = make("variables", 0, 900, HAYSTACK, count)
    assert score(sample, " ".join(sample.answers[:2])) == pytest.approx(0.4)
