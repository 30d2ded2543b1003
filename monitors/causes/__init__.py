"""Causes: which factor changed where a frame looks unfamiliar."""
