"""Benchmarks: what the lens costs, compared with every alternative. Run `make bench` or `python -m benchmarks`."""
