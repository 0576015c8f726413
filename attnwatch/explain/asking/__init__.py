"""Questions to a language model: in what words, in what tokens, and what comes back."""
