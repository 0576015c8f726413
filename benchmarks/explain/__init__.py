"""Whether explanations are right, and what they cost."""
