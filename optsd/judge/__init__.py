"""What holds and what does not: statistics, expectations, verdicts. Reads records only and never imports torch."""
