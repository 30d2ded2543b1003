"""Comparison of ways to state confidence."""
