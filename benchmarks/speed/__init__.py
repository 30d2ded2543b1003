"""Time and memory of the parts, compared with baselines measured in the same run."""
