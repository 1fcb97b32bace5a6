"""Benchmarks that anyone can repeat: interleaved rounds, equal outputs first, ratios to a measured floor."""
