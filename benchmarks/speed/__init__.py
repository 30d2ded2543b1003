"""Time and memory of the parts, each beside a baseline measured in the same run."""
