"""Monitor channels: each scores one aspect of the input; higher is more surprising."""
