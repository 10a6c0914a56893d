"""Benchmarks: two things compared in one run, as a ratio, written as JSON to bench/results/. Never part of `make test`."""
