"""Answers to multiple-choice questions as markdown."""

import html
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnwatch.explain import Answers

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")
_LINE_END = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_CLAIM = "Claimed reason (text that the model finds likely, not an explanation)"


def answers_markdown(answers: "Answers", most: int = 20) -> str:
    """Return the first questions with the model's answer, stated confidence and claimed reason."""
    number = len(answers.labels)
    lines = [f"**{sum(answers.correct)} of {number} questions right**; {len(answers.skipped)} skipped"]
    lines += [f"skipped: {literal(prompt)} ({literal(why)})" for prompt, why in answers.skipped[:most]]
    lines += [_answer_markdown(answers, index) for index in range(min(number, most))]
    if number > most:
        lines.append(f"and {number - most} more")
    return "\n\n".join(lines)


def literal(text: str) -> str:
    """Return a text as one line of markdown in which no character is markdown or HTML markup."""
    line = " ".join(_LINE_END.sub(" ↵ ", text).split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def _answer_markdown(answers: "Answers", index: int) -> str:
    prediction, label = answers.predictions[index], answers.labels[index]
    lines = [f"- {literal(answers.prompts[index])}", ""]
    for at, (choice, probability) in enumerate(
        zip(answers.choices[index], answers.probabilities[index].tolist(), strict=False)
    ):
        marks = [mark for mark, holds in (("its answer", at == prediction), ("right", at == label)) if holds]
        lines.append(f"  - {literal(choice)}: {probability:.0%}" + (f" **({', '.join(marks)})**" if marks else ""))
    if answers.stated_confidence:
        stated = answers.stated_confidence[index]
        reply = f" (it wrote: {literal(answers.stated_replies[index])})" if answers.stated_replies else ""
        lines.append(f"  - stated confidence: {'no percentage' if math.isnan(stated) else f'{stated:.0%}'}{reply}")
    if answers.claimed_reasons:
        lines.append(f"  - {_CLAIM}: {literal(answers.claimed_reasons[index])}")
    return "\n".join(lines)
