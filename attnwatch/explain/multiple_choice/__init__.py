"""Multiple-choice questions to a language model: templates, tokens, probabilities and answers."""
