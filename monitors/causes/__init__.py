"""Causes: naming the change in a frame that looks unfamiliar.

A cause is what the monitor infers, a factor what the simulator changes in `worldmodel.envs`; the
same change has the same name in both ("lighting"). One factor may show up as different causes.
"""
