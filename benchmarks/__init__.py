"""Scripts that measure the figures in README and docs."""
