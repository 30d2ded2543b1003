"""Seal of a monitor folder: a hash of every file, and a signature if there is a key.

The hashes find accidents and edits by hand. They are no signature: whoever may write the folder may
write new hashes, too. A signature (HMAC-SHA256) needs the key, which signs and verifies.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
from pathlib import Path

import msgspec

from worldmodel.checkpoint import short_hash
from worldmodel.structured_files import read_json

LOG = logging.getLogger(__name__)
SEAL = "seal.json"
FORMAT = 1
KEY_VARIABLE = "WORLDMODEL_SIGN_KEY"
"""Environment variable with the path of the key file."""
KEY_BYTES = (32, 4096)
"""Shortest and longest key."""


class Seal(msgspec.Struct):
    """Content of a seal."""

    format: int
    files: dict[str, str]
    """Name below the folder -> SHA-256 in hex, for every file but the seal."""
    model_sha256: str | None = None
    """`content_hash` of the model that was calibrated; None: not known."""
    hmac_sha256: str | None = None
    """Signature of all other fields; None: not signed."""

    def signature(self, key: bytes) -> str:
        """HMAC-SHA256 of the fields above, in hex."""
        fields = {"format": self.format, "files": self.files, "model_sha256": self.model_sha256}
        text = "worldmodel monitor\n" + json.dumps(fields, sort_keys=True)
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def read_key(file: Path) -> bytes:
    """Key of a file, without white space at its ends.

    Raises:
        OSError: The file cannot be read.
        ValueError: The key is too short or too long.
    """
    least, most = KEY_BYTES
    if file.exists() and not file.is_file():
        raise ValueError(f"The key file {file} must be a regular file.")
    with open(file, "rb") as stream:
        key = stream.read(most + 1).strip()
    if not least <= len(key) <= most:
        raise ValueError(
            f"The key in {file} must have {least} to {most} bytes, got {len(key)}; make one with "
            "`openssl rand -hex 32`."
        )
    return key


def environment_key() -> bytes | None:
    """Key of the file that `KEY_VARIABLE` names; None if it is not set."""
    named = os.environ.get(KEY_VARIABLE)
    return read_key(Path(named)) if named else None


def write_seal(folder: Path, *, key: bytes | None = None, model_sha256: str | None = None) -> None:
    """Write the seal of all files that are in `folder` now."""
    seal = Seal(FORMAT, _hashes(folder), model_sha256)
    seal.hmac_sha256 = None if key is None else seal.signature(key)
    text = json.dumps(msgspec.to_builtins(seal), indent=2) + "\n"
    (folder / SEAL).write_text(text, encoding="utf-8")


def check_seal(folder: Path, *, key: bytes | None, model_sha256: str | None = None) -> None:
    """Raise unless `folder` holds exactly the files of its seal, and the key signed it.

    Args:
        folder: Folder of a monitor.
        key: Key that must have signed it; None: a signature is not checked, which is logged.
        model_sha256: `content_hash` of the model in use; None: not known.

    Raises:
        ValueError: A file was changed, added or removed, the seal or the signature is missing or
            wrong, or the monitor belongs to another model.
    """
    if not (folder / SEAL).is_file():
        raise ValueError(
            f"The monitor in {folder} has no {SEAL}: an earlier version made it, or a file is "
            "missing; calibrate again."
        )
    seal = read_json(folder / SEAL, Seal, "calibrate again")
    if seal.format != FORMAT:
        raise ValueError(
            f"The {SEAL} in {folder} has format {seal.format}, this version reads {FORMAT}; "
            "calibrate again."
        )
    _check_signature(folder, seal, key)
    found = _hashes(folder)
    changed = sorted({*found.items()} ^ {*seal.files.items()})
    if changed:
        raise ValueError(
            f"The monitor in {folder} was changed after it was written ({changed[0][0]} was "
            "edited, added or removed); calibrate again."
        )
    own = seal.model_sha256
    if own is not None and model_sha256 is not None and own != model_sha256:
        raise ValueError(
            f"The monitor in {folder} was fitted for the model {short_hash(own)!r}, not for "
            f"{short_hash(model_sha256)!r}; load the monitor of this model, or calibrate one."
        )


def _check_signature(folder: Path, seal: Seal, key: bytes | None) -> None:
    """Raise if there is a key that did not sign the seal."""
    if key is None:
        if seal.hmac_sha256 is not None:
            LOG.warning(
                "note: the signature of the monitor in %s was not checked; set %s to the key file.",
                folder,
                KEY_VARIABLE,
            )
        return
    if seal.hmac_sha256 is None:
        raise ValueError(
            f"The monitor in {folder} is not signed, but {KEY_VARIABLE} is set; calibrate again "
            "with `--sign-key`, or unset the variable."
        )
    if not hmac.compare_digest(seal.hmac_sha256.encode(), seal.signature(key).encode()):
        raise ValueError(
            f"The monitor in {folder} was not signed with the key of {KEY_VARIABLE}, or was "
            "changed since; get it from its maker again."
        )


def _hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file but the seal and hidden files, which nothing reads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and str(name) != SEAL and not name.parts[-1].startswith("."):
            with open(path, "rb") as file:
                found[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
