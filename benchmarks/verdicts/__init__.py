"""Are the verdicts right? A zoo of short trainings with known outcomes, and how well their outcomes are foreseen."""
