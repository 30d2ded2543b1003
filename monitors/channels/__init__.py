"""Channels: one question about the input each, with its own score."""
