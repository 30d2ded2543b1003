"""Recorded episodes as the model sees them."""
