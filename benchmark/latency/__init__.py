"""What the latency benchmarks share: a baseline, a random network of any size, rounds."""
