"""Five questions after *What to remember* of each chapter, from chapters/quiz/<paper>.yml.

A file holds five questions: what is asked (`ask`), the right choice (`right`) and the wrong ones
(`wrong`), each a pair of the choice and why it is right or wrong. The order on the page is the
alphabet's. What is written here works without scripts: the choices, and the answers in a fold;
assets/quiz.js makes a form of it.
"""

import html

import yaml
from docutils import nodes
from root import ROOT

QUIZZES = ROOT / "chapters" / "quiz"
AFTER = "what-to-remember"
INTRO = "Five questions, to see whether the ideas have stayed. Nothing is counted, kept or sent."


def choices(question):
    """(choice, why, is it right?) of a question, in the order of the page."""
    right = [(*question["right"], True)]
    return sorted(right + [(*pair, False) for pair in question["wrong"]])


def shown(number, question):
    """A question as HTML."""
    listed = choices(question)
    texts = "".join(f"<li>{html.escape(text)}</li>" for text, _, _ in listed)
    whys = "".join(
        f"<li{' data-right' if right else ''}><strong>{'Right.' if right else 'Not so.'}</strong> "
        f"{html.escape(why)}</li>"
        for _, why, right in listed
    )
    return (
        f'<div class="quiz-question"><p class="quiz-ask"><strong>{number}.</strong> '
        f'{html.escape(question["ask"])}</p><ol class="quiz-choices" type="A">{texts}</ol>'
        f'<details class="quiz-answer"><summary>Question {number}: every choice explained</summary>'
        f'<ol type="A">{whys}</ol></details></div>'
    )


def add_quiz(app, doctree):
    """The quiz of a chapter as a section of its own."""
    path = QUIZZES / f"{app.env.docname.rpartition('/')[2]}.yml"
    before = next((s for s in doctree.findall(nodes.section) if AFTER in s["ids"]), None)
    if before is None or not path.exists():
        return
    app.env.note_dependency(str(path))
    questions = yaml.safe_load(path.read_text(encoding="utf-8"))
    section = nodes.section(ids=["quiz"], names=["quiz"])
    section += nodes.title(text="Quiz")
    section += nodes.paragraph(text=INTRO)
    body = "".join(shown(i, question) for i, question in enumerate(questions, 1))
    section += nodes.raw("", f'<div class="quiz">{body}</div>', format="html")
    before.parent.insert(before.parent.index(before) + 1, section)


def setup(app):
    app.connect("doctree-read", add_quiz, priority=100)  # before the table of contents is made
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
