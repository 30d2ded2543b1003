"""The one error of this package that is more than a plain `ValueError`."""


class NotFittedError(ValueError, AttributeError):
    """Raised when something is used before its `fit`."""


def require_fitted(thing: object, attribute: str) -> None:
    """Raise `NotFittedError` if `thing` lacks the attribute that its `fit` sets."""
    if not hasattr(thing, attribute):
        raise NotFittedError(f"This {type(thing).__name__} is not fitted; call `fit` or load it.")
