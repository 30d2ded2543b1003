"""Calibration of confidence and monitor: the job behind `worldmodel calibrate`."""
