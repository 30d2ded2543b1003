"""Training: the job behind `worldmodel train`."""
