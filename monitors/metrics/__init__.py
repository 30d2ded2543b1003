"""Metrics of detection, localisation, rank correlation and uncertainty."""
