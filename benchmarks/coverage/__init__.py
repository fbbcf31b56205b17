"""How often the intervals hold the truth: simulated cohorts, of which the truth is known."""
