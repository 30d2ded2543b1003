"""Video world models that say how likely their own prediction is right."""

from worldmodel.c3_import import load_reference
from worldmodel.imagination import Imagined
from worldmodel.model import ModelConfig, WorldModel

__all__ = ["Imagined", "ModelConfig", "WorldModel", "load_reference"]
