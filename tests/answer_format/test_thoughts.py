"""Where a reply stops thinking: what is left is the answer, and nothing else is."""

from __future__ import annotations

import pytest

from vllm_relational.answer_format.thoughts import thought_opening, without_thought


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
        ("<reasoning>hm</reasoning>\nyes", "yes"),
        ("Its <reasoning> is sound.", "Its <reasoning> is sound."),
        ("<seed:think>hm</seed:think>yes", "yes"),
        ("<|START_THINKING|>hm<|END_THINKING|>yes", "yes"),
        ("◁think▷hm◁/think▷yes", "yes"),
        ("<mm:think>hm</mm:think>yes", "yes"),
        ("<ifm|think_fast>hm</ifm|think_fast>yes", "yes"),
        ("<think:opensource>hm</think:opensource>yes", "yes"),
        ("<|begin_of_thought|>hm<|end_of_thought|>\n\nyes", "yes"),
        ("<|open|>think<|sep|>hm<|close|>think<|sep|>yes", "yes"),
        ("<|channel>thought\nhm<channel|>yes", "yes"),
        # Several thoughts, and thoughts about the mark.
        ("<think>a</think><think>b</think>yes", "yes"),
        ("<think>a <think>b</think> c</think>yes", "yes"),
        ("<think>they wrote <think> here</think>yes", "yes"),
        # The prompt opened the thought.
        ("hm, so it is\n</think>\n\nyes", "yes"),
        ("hm</think>yes", "yes"),
        ("</think>yes", "yes"),
        ("hm</think>Write <think>x</think> first.", "Write <think>x</think> first."),
        ('he says "no"</think>"yes"', '"yes"'),
        ("the mark `</think>` is not the end</think>yes", "yes"),
        # Channels.
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes", "yes"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|> yes<|return|>", "yes"),
        ("<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}<|end|>", "{}"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>yes",
            "yes",
        ),
        ("<|channel|>final<|message|>yes", "yes"),
        ("<|channel|>final<|message|><|return|>", ""),
        ("analysisWe need it. Yes.assistantfinalyes", "yes"),
        ("<|channel|>analysisWe need it.assistantfinalyes", "yes"),
        ("<|channel|>finalyes", "yes"),
        ("<|channel|>finalYes, final.", "Yes, final."),
        # Marks inside the answer are part of it.
        ("Close it with `</think>`, not with '[/THINK]'.", "Close it with `</think>`, not with '[/THINK]'."),
        ('{"note": "close it with </think> here"}', '{"note": "close it with </think> here"}'),
        ('"</think>" closes a thought.', '"</think>" closes a thought.'),
        ("The mark <|channel|>final<|message|> is no answer.", "The mark <|channel|>final<|message|> is no answer."),
        ("<|channel|>final<|message|>Write <think>x</think>.", "Write <think>x</think>."),
        ("analysis of the text: it is final", "analysis of the text: it is final"),
        ("analysisWe is a word, assistant final not", "analysisWe is a word, assistant final not"),
        ("the analysisX.assistantfinal mark", "the analysisX.assistantfinal mark"),
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
        ("<|channel|>analysis<|message|>is it", None),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant", None),
        ("<|channel|>analysisWe need", None),
        ("<|channel>thought\nis it", None),
    ],
)
def test_the_answer_behind_the_thought(reply, answer):
    assert without_thought(reply) == answer


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|assistant|>\n<think>\n", "<think>"),
        ("<think>", "<think>"),
        ("<|assistant|>\n<think>\n\n</think>\n\n", ""),
        ("the text <think>\n<|assistant|>\n", ""),
        ("<|end|><|start|>assistant", "<|channel|>"),
        ("write <|start|>assistant, please\n<|assistant|>\n", ""),
        ("[THINK]", "<think>"),
        ("<|assistant|>\n", ""),
    ],
)
def test_a_prompt_that_ends_inside_a_thought(prompt, mark):
    assert thought_opening(prompt) == mark
