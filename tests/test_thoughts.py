"""Where a reply stops thinking: what is left is the answer, and nothing else is."""

from __future__ import annotations

import pytest

from vllm_relational.thoughts import opens_thought, without_thought


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("yes", "yes"),
        ("<think>hm</think>yes", "yes"),
        ("<think>\nis it?\n</think>\n\n yes ", "yes "),
        ("\n <think></think>\nyes", "yes"),
        ("<THINK>hm</Think>yes", "yes"),
        ("<thinking>hm</thinking> yes", "yes"),
        ("[THINK]hm[/THINK]yes", "yes"),
        ("<seed:think>hm</seed:think>yes", "yes"),
        ("<|START_THINKING|>hm<|END_THINKING|>yes", "yes"),
        # Several thoughts, and thoughts about the mark.
        ("<think>a</think><think>b</think>yes", "yes"),
        ("<think>a <think>b</think> c</think>yes", "yes"),
        ("<think>they wrote <think> here</think>yes", "yes"),
        # The prompt opened the thought.
        ("hm, so it is\n</think>\n\nyes", "yes"),
        ("hm</think>yes", "yes"),
        ("</think>yes", "yes"),
        ("hm</think>Write <think>x</think> first.", "Write <think>x</think> first."),
        # Marks inside the answer are part of it.
        ("Write <think>x</think> first.", "Write <think>x</think> first."),
        ("<think>hm</think>Write <think> first.", "Write <think> first."),
        ("The mark <think> opens it.", "The mark <think> opens it."),
        ("<thinker>yes", "<thinker>yes"),
        ("<b>yes</b>", "<b>yes</b>"),
        ("", ""),
        ("<think>hm</think>", ""),
        # Unfinished.
        ("<think>is it", None),
        ("  <think>", None),
        ("<think>a</think> <think>b", None),
    ],
)
def test_the_answer_behind_the_thought(reply, answer):
    assert without_thought(reply) == answer


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|assistant|>\n<think>\n", True),
        ("<think>", True),
        ("<|assistant|>\n<think>\n\n</think>\n\n", False),
        ("the text <think>\n<|assistant|>\n", False),
        ("<|assistant|>\n", False),
    ],
)
def test_a_prompt_that_ends_inside_a_thought(prompt, opens):
    assert opens_thought(prompt) is opens
