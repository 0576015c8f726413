"""Multiple-choice questions for a language model: templates, tokens, probabilities and answers."""
