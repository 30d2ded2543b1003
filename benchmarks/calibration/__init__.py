"""Comparison of confidence methods."""
