"""Guarantees on alarm rates and risk."""
