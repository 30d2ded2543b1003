"""Error for objects that are used before `fit`."""


class NotFittedError(ValueError, AttributeError):
    """Raised when an object is used before its `fit`."""


def require_fitted(thing: object, attribute: str) -> None:
    """Raise `NotFittedError` if `thing` lacks the attribute that its `fit` sets."""
    if not hasattr(thing, attribute):
        raise NotFittedError(f"This {type(thing).__name__} is not fitted; call `fit` or load it.")
