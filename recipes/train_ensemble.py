"""Train the other members of a deep ensemble around a checkpoint: same data, other seeds.

    OMP_NUM_THREADS=1 python recipes/train_ensemble.py runs/tabletop-train.zarr runs/ensemble

Every member has the checkpoint's tokenizer, episodes, network shape and losses, but other initial
weights and batches. `<out>/member<i>` is a model folder with trained dynamics and an untrained
confidence head. Run the script again to resume.

Members with fewer and smaller steps than the checkpoint are cheaper and weaker;
`python -m benchmarks.calibration.baseline_cost` measures by how much.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from worldmodel.checkpoint import checkpoint_folder
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.model import WorldModel
from worldmodel.training.config import Computing, LoopConfig
from worldmodel.training.new_model import new_model
from worldmodel.training.presets import Preset, get_preset
from worldmodel.training.run import Run
from worldmodel.training.settings import Settings
from worldmodel.training.splits import Split
from worldmodel.training.stages import train_dynamics
from worldmodel.training.stopping import Stop


def member_preset(preset: Preset, seed: int, size: argparse.Namespace) -> Preset:
    """Preset of the checkpoint with another seed and the given size.

    Learning rates decay over the new length, with the same share of warm-up. Uses float32, which is
    faster on CPUs without bfloat16 units.
    """

    def shortened(loop: LoopConfig, num_steps: int) -> LoopConfig:
        warmup = max(1, round(loop.warmup * num_steps / loop.steps))
        return replace(
            loop, steps=num_steps, batch_size=size.batch_size, warmup=warmup, seed=seed,
            checkpoint_every=25, validate_every=num_steps,
        )  # fmt: skip

    return replace(
        preset,
        clip_frames=size.clip_frames,
        computing=Computing(),
        dynamics_loop=shortened(preset.dynamics_loop, size.steps),
        rollout_loop=shortened(preset.rollout_loop, size.rollout_steps),
    )


def train_member(
    model: WorldModel, source: Path, store: ClipStore, preset: Preset, folder: Path
) -> None:
    """Train one member of the ensemble around `model` and save it as `folder`."""
    tokenizer = str(source / "tokenizer")
    split = {name: tuple(ids) for name, ids in model.config.provenance["split"].items()}
    member = new_model(store, preset, tokenizer)
    with Stop() as stop:
        training = folder.parent / "training" / folder.name
        run = Run(store, Settings("tabletop", preset), training, Split(**split), stop, tokenizer)
        train_dynamics(run, member)
    member.config.provenance.update(
        data=store.path.name, recipe=asdict(preset), split=split, stages=["dynamics"]
    )
    member.save(folder)


def main() -> None:
    """Train the members that `out` does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="clip store that the checkpoint was trained on")
    parser.add_argument("out", type=Path, help="folder of the members")
    parser.add_argument("--model", default="tabletop", help="checkpoint that is the first member")
    parser.add_argument("--members", type=int, default=2, help="members to train")
    parser.add_argument("--steps", type=int, default=220, help="training steps on real context")
    parser.add_argument(
        "--rollout-steps", type=int, default=16, help="training steps on the model's own context"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="clips per step")
    parser.add_argument("--clip-frames", type=int, default=8, help="frames of a clip")
    arguments = parser.parse_args()
    store, source = ClipStore.open(arguments.data), checkpoint_folder(arguments.model)
    model = WorldModel.load(source)
    recipe = get_preset(model.config.provenance["preset"])
    for seed in range(1, arguments.members + 1):
        folder = arguments.out / f"member{seed}"
        if not folder.is_dir():
            preset = member_preset(recipe, seed, arguments)
            train_member(model, source, store, preset, folder)
        print(folder, flush=True)


if __name__ == "__main__":
    main()
