"""Metrics: detection, localisation, rank correlation and uncertainty decomposition."""
