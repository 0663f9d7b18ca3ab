"""Benchmarks: how this package compares with a kernel on this machine, as ratios within one run. See docs/benchmarks.md."""
