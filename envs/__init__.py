"""Gymnasium environments of the tabletop. Importing this package imports no MuJoCo or OpenGL."""

from __future__ import annotations

import gymnasium

for _name, _task in (("PickPlace", "pick_place"), ("Push", "push"), ("Lift", "lift")):
    gymnasium.register(
        id=f"worldmodel/Tabletop{_name}-v0",
        entry_point="worldmodel.envs.tabletop:TabletopEnv",
        max_episode_steps=40,
        kwargs={"task": _task},
    )
