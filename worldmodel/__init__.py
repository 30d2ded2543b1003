"""Video world models that say how likely their own prediction is right."""

from worldmodel.imagination import Imagined
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.reference_import import load_reference

__all__ = ["Imagined", "ModelConfig", "WorldModel", "load_reference"]
