"""Confidence of a language model in its own texts and in others: stories15M on its stories, and on Shakespeare."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnwatch.explain import Answers, ask, questions_from_text
from benchmarks.common import progress, show
from benchmarks.explain.occlusion import stories

_QUESTIONS, _STORIES, _STORY_TOKENS, _CHARACTERS = 200, 64, 200, 200_000


def measure(data: Path, quick: bool) -> dict[str, Any]:
    """Measure, show and return everything about confidence."""
    directory = data / "models" / "stories15M"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False).eval(),
        AutoTokenizer.from_pretrained(directory, trust_remote_code=False),
    )
    own = stories(model, 8 if quick else _STORIES, _STORY_TOKENS)
    texts = {
        "stories that it wrote itself": [{"input_ids": own, "attention_mask": torch.ones_like(own)}],
        "Shakespeare": (data / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:_CHARACTERS],
    }
    measured = {}
    for name, text in progress(texts.items(), "confidence"):
        questions = questions_from_text(text, tokenizer, 8 if quick else _QUESTIONS)
        answers = ask(model, tokenizer, questions, batch_size=16)
        percentages = ask(model, tokenizer, questions, batch_size=16, stated="percentage")
        measured[name] = _figures(answers) | {
            "percentages": len(questions) - percentages.num_unparsable,
            "forwards": answers.num_forwards,
        }
        show(f"{name}: {answers.calibration()}")
        show(f"  asked whether it is sure: {answers.stated_calibration()}")
        show(f"  percentages among {len(questions)} replies: {measured[name]['percentages']}")
    return measured


def _figures(answers: Answers) -> dict[str, Any]:
    """Return the numbers of both calibrations, without the bins of their diagrams."""
    both = {"choices": answers.calibration(), "stated": answers.stated_calibration()}
    return {
        name: {field: value for field, value in asdict(found).items() if not field.startswith("bin_")}
        for name, found in both.items()
    }
