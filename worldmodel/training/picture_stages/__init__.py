"""Training stages of the compositor and of the confidence in pictures."""
