"""The quizzes: five questions a chapter, every choice explained, nothing that gives the answer away."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from collage.page import claims

ROOT = Path(__file__).parents[1]
QUIZZES = ROOT / "chapters" / "quiz"
every_quiz = pytest.mark.parametrize("paper", claims())


def questions(paper):
    return yaml.safe_load((QUIZZES / f"{paper}.yml").read_text(encoding="utf-8"))


def everything():
    """Every question, with its choices in the order of the page."""
    found = [q for paper in claims() for q in questions(paper)]
    return [(q, sorted([q["right"][0], *(text for text, _ in q["wrong"])])) for q in found]


@every_quiz
def test_five_questions_with_one_right_choice_and_a_reason_for_each(paper):
    asked = questions(paper)
    assert len({q["ask"] for q in asked}) == 5 == len(asked)
    for q in asked:
        assert set(q) == {"ask", "right", "wrong"} and q["ask"].endswith("?")
        pairs = [q["right"], *q["wrong"]]
        assert 3 <= len(pairs) <= 4
        for choice, why in pairs:
            assert choice.endswith(".") and why.endswith("."), choice
            assert len(choice) <= 110 and 25 <= len(why) <= 240, choice
        assert len({choice for choice, _ in pairs} | {why for _, why in pairs}) == 2 * len(pairs)


def test_no_quiz_without_a_chapter():
    assert {p.stem for p in QUIZZES.iterdir()} == set(claims())


def test_neither_place_nor_length_gives_the_answer_away():
    every = everything()
    places = Counter(choices.index(q["right"][0]) for q, choices in every)
    assert max(places.values()) <= len(every) / 2 and min(places[i] for i in range(3)) >= 5
    longest = sum(q["right"][0] == max(choices, key=len) for q, choices in every)
    assert longest <= len(every) / 2


def test_the_page_has_what_works_without_scripts(monkeypatch):
    """Choices and answers in the same order, the right one marked; what is written is shown as it is."""
    monkeypatch.syspath_prepend(ROOT / "_ext")
    import quiz

    question = {"ask": "Is 1 < 2?", "right": ["b & c.", "It is."],
                "wrong": [["a.", "It is not."], ["d.", "Nor is this."]]}  # fmt: skip
    page = quiz.shown(3, question)
    assert [text for text, _, _ in quiz.choices(question)] == ["a.", "b & c.", "d."]
    assert "<strong>3.</strong> Is 1 &lt; 2?" in page and "<li>b &amp; c.</li>" in page
    assert page.count("<li data-right>") == 1
    assert page.index("It is not.") < page.index("It is.</li>") < page.index("Nor is this.")
    assert page.count("<details") == 1 == page.count("<summary>")
