"""Video world models that say how likely their own prediction is right."""

__all__: list[str] = []
