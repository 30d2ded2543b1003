"""Calibration of confidence: streaming counts, metrics, recalibration and event forecasts."""
