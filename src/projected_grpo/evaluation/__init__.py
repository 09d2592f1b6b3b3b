"""From graded completions to a verdict: rates, paired statistics, hypotheses. Nothing is imported here."""
