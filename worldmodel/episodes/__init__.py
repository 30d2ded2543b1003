"""Recorded episodes, resampled, resized and encoded for a model."""
