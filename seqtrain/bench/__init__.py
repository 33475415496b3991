"""Benchmarks: everything beside its baseline, in one run, by turns. The claims are ratios."""
