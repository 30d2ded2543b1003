"""Load and abuse of the monitor service."""
