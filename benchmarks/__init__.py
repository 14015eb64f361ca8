"""Benchmarks of tiacc, run by ``make bench``."""
