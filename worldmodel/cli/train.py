"""Train tokenizer, dynamics, confidence head and judges on a clip store, resuming a stopped run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from worldmodel.datasets.clip_store import ClipStore


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel train`."""

    data: Path
    """Clip store made by `worldmodel data convert` or `worldmodel data collect`."""
    preset: str = "smoke"
    """Recipe: "smoke" (minutes on a laptop) or "tabletop" (the shipped checkpoint)."""
    out: Path | None = None
    """Folder of the run (default: runs/<name of the data>-<preset>); a run there is continued."""
    restart: str | None = None
    """Stage to train anew, with all after it: tokenizer, dynamics, confidence or judge."""
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Train; the model ends up in `<out>/model`."""
    from worldmodel.stages import train

    store = ClipStore.open(command.data)
    out = command.out or Path("runs") / f"{store.path.stem}-{command.preset}"
    model = train(store, command.preset, out, restart=command.restart)
    parameters = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    if command.json:
        print(json.dumps({"model": str(out / "model"), "parameters": parameters}))
        return 0
    print(f"Model: {out / 'model'} ({sum(parameters.values()):,} parameters)")
    return 0
