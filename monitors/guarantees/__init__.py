"""Statistical guarantees: episode thresholds, conformal risk control, fleet drift."""
