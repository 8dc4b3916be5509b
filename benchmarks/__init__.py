"""The benchmarks of hybridgen: `hybridgen bench`, or `python -m benchmarks` in a checkout."""
