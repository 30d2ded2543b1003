"""Kinds of pictures of imagined frames, in a module that does not import PyTorch."""

COMPOSED = "composed"
DECODED = "decoded"
KINDS = {
    COMPOSED: "composed with the last real frame",
    DECODED: "decoded, without the last real frame",
}
"""Name of a kind of picture -> its description."""


def check_kind(kind: str) -> None:
    """Raise a ValueError if `kind` names no kind of picture."""
    if kind not in KINDS:
        raise ValueError(f"`pictures` must be one of {', '.join(KINDS)}, got {kind!r}.")
