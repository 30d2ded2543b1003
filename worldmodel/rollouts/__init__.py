"""Open-loop rollouts: the job behind `worldmodel imagine`."""
