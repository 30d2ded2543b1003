"""Load and abuse tests of the monitor service."""
