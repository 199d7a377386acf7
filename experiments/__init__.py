"""Command lines: generate, benchmark, train, report; each run with `python -m experiments.NAME`."""
