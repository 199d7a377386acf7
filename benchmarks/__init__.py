"""Benchmarks that compare, run from the checkout: `python -m benchmarks.NAME`."""
