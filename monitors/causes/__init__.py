"""Causes: naming the change in a frame that looks unfamiliar.

A cause is the name that the monitor infers ("lighting"); a factor is the scene parameter that the
simulator changes in `worldmodel.envs`. One factor may show up as different causes.
"""
