"""Reliability of stated probabilities: counts, measures, recalibration, events."""
