"""How fast a preset trains and imagines on this machine: step time, frames/s, MFU, memory.

    python -m benchmarks.speed.training --preset bridge-256 --clips 16

Clips are noise of the preset's shape: speed does not depend on what they show. Results of a preset
replace its earlier ones in benchmarks/results/training-<device>.json; the table beside it is made
from that.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from benchmarks.provenance import RESULTS
from worldmodel.imagination import frames
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.networks.sampler import Sampling
from worldmodel.training.config import Computing
from worldmodel.training.flops import flops_per_item, peak_flops, wait_for
from worldmodel.training.loop import advance, move_weights, prepare
from worldmodel.training.memory import GIB, Workload, footprint, random_clips
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.parallel import all_processes, blocks
from worldmodel.training.presets import PRESETS, Preset

NAMES = {"no": "float32", "bf16": "bf16"}
WARM_UP = 3
"""Steps before time is taken: they compile, and let the allocator settle."""


def hardware(device: torch.device) -> dict[str, str]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    found = {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"load {os.getloadavg()[0]:.1f} over the last minute"
    }
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        found["gpu"] = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    names = ("torch", "accelerate", "worldmodel")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return {**found, "versions": f"Python {platform.python_version()}, {versions}"}


def network_config(preset: Preset, aspect: float) -> DynamicsConfig:
    """The preset's network for frames of `aspect` (width over height) and 7 numbers an action."""
    unit = preset.tokenizer.stride * preset.dynamics.patch
    columns = round(preset.image_height * aspect / unit) * preset.dynamics.patch
    chunk = preset.frame_stride if preset.action_chunk == "encode" else 1
    return replace(
        preset.dynamics,
        channels=preset.tokenizer.channels,
        height=preset.image_height // preset.tokenizer.stride,
        width=columns,
        views=preset.cameras,
        action_dim=7 * chunk,
    )


def time_training(
    preset: Preset, config: DynamicsConfig, computing: Computing, *, clips: int, steps: int
) -> dict[str, Any]:
    """Seconds per step and what follows from them."""
    device, precision = all_processes().device, computing.precision
    torch.manual_seed(0)
    objective = DynamicsObjective(Dynamics(config), own_context=0.0, passes=1).to(device)
    work = Workload(
        dynamics=config, clips=clips, frames=preset.clip_frames, precision=precision,
        fused_attention=device.type == "cuda",
    )  # fmt: skip
    loop = replace(preset.dynamics_loop, batch_size=clips, steps=WARM_UP + steps)
    batch = random_clips(work).to(device)
    flops = clips * flops_per_item(objective, batch[:1], precision=precision)
    model, state = prepare(copy.deepcopy(objective).train(), loop, computing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait_for(device)
            start = time.perf_counter()
        advance(model, batch, loop, computing, step)
        move_weights(state, loop, step)
    wait_for(device)
    seconds = (time.perf_counter() - start) / steps
    estimate = footprint(work, has_muon=True, checkpoint_blocks=computing.checkpoint_blocks)
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    return {
        "seconds_per_step": seconds,
        "frames_per_second": clips * preset.clip_frames / seconds,
        "mfu": flops / seconds / peak_flops(device, precision),
        "tflops_per_step": flops / 1e12,
        "estimated_gib": estimate.total / GIB,
        "measured_peak_gib": peak,
    }


def time_rollout(
    preset: Preset, config: DynamicsConfig, computing: Computing, *, batch: int, num_frames: int
) -> dict[str, Any]:
    """Frames per second over all rollouts of a batch, decoding left out."""
    device = all_processes().device
    torch.manual_seed(0)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if computing.precision == "bf16" else torch.float32
    dynamics = Dynamics(config).to(device, dtype).eval()
    if computing.compile_blocks:
        for block in blocks(dynamics):
            block.compile()
    start_frames = preset.longest_start
    warm_up = config.context + 2  # every state of the cache has been met, and compiled for
    rows = start_frames + warm_up + num_frames - 1
    latent = (config.views, config.channels, config.height, config.width)
    inputs = RolloutInputs(
        context=torch.randn(batch, start_frames, *latent, device=device, dtype=dtype),
        actions=torch.randn(batch, rows, config.action_dim, device=device, dtype=dtype),
        action_valid=torch.ones(batch, rows, dtype=torch.bool, device=device),
        seeds=range(batch),
    )
    with torch.inference_mode():
        rollout = frames(dynamics, inputs, sampling=Sampling(num_steps=preset.num_steps))
        for _ in range(warm_up):
            next(rollout)
        wait_for(device)
        start = time.perf_counter()
        count = sum(1 for _ in rollout)
        wait_for(device)
    seconds = time.perf_counter() - start
    return {"frames_per_second": batch * count / seconds, "seconds_per_frame": seconds / count}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a preset."""
    preset = PRESETS[options.preset]
    config, device = network_config(preset, options.aspect), all_processes().device
    clips = options.clips or preset.dynamics_loop.batch_size
    training, rollouts = [], []
    for precision in options.precisions:
        for compiled in (False, True) if options.compile else (False,):
            computing = replace(preset.computing, precision=precision, compile_blocks=compiled)
            named = {"precision": precision, "compile": compiled}
            figures = time_training(preset, config, computing, clips=clips, steps=options.steps)
            training.append({**named, **figures})
            print(training[-1], flush=True)
            for batch in options.rollouts:
                figures = time_rollout(
                    preset, config, computing, batch=batch, num_frames=options.frames
                )
                rollouts.append({**named, "batch": batch, **figures})
                print(rollouts[-1], flush=True)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Dynamics(config).parameters())
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": hardware(device),
        "parameters": parameters,
        "latents": [config.views, config.channels, config.height, config.width],
        "clips": clips,
        "clip_frames": preset.clip_frames,
        "checkpoint_blocks": preset.computing.checkpoint_blocks,
        "num_steps": preset.num_steps,
        "timed_steps": options.steps,
        "peak_tflops": {p: peak_flops(device, p) / 1e12 for p in options.precisions},
        "training": training,
        "rollouts": rollouts,
    }


def table(results: dict[str, Any], *, has_gpu: bool) -> str:
    """The figures of every preset as Markdown."""
    lines = [
        "# Speed of training and imagination",
        "",
        "By `python -m benchmarks.speed.training`. MFU after PaLM (arXiv:2204.02311): operations "
        "the model asks for, over those of a large matrix product measured on the same device in "
        "the same precision. Rollouts without decoding.",
    ]
    if not has_gpu:
        lines += [
            "",
            "**No GPU was at hand.** `bridge-256` and `droid-3view` were not run; where there is "
            "one, `python -m benchmarks.speed.training --preset bridge-256 --clips 16` adds them.",
        ]
    for name, result in results.items():
        lines += ["", f"## {name}", "", settings(result), "", *rows(result)]
    return "\n".join(lines) + "\n"


def settings(result: dict[str, Any]) -> str:
    """What was run on what, in a sentence or two."""
    views, channels, height, width = result["latents"]
    peaks = ", ".join(f"{NAMES[k]} {v:.2f}" for k, v in result["peak_tflops"].items())
    again = "computed again" if result["checkpoint_blocks"] else "kept"
    return (
        f"{result['date']}; {'; '.join(result['hardware'].values())}. Dynamics of "
        f"{result['parameters']:,} parameters, latents of {views}x{channels}x{height}x{width}, "
        f"{result['clips']} clips of {result['clip_frames']} frames a step, blocks {again}; mean "
        f"of {result['timed_steps']} steps. Sampler steps a frame: {result['num_steps']}. Peak of "
        f"the device in TFLOP/s: {peaks}."
    )


def rows(result: dict[str, Any]) -> list[str]:
    """The two tables of a preset."""
    columns = "| precision | compiled | s / step | frames/s | MFU | GiB estimated | GiB measured |"
    lines = [columns, "|---" * 7 + "|"]
    for row in result["training"]:
        peak = row["measured_peak_gib"]
        lines.append(
            f"| {named(row)} | {row['seconds_per_step']:.3f} | {row['frames_per_second']:.0f} | "
            f"{row['mfu']:.2f} | {row['estimated_gib']:.2f} | "
            f"{'n/a' if peak is None else f'{peak:.2f}'} |"
        )
    lines += ["", "| precision | compiled | rollouts | frames/s | ms / frame |", "|---" * 5 + "|"]
    lines += [
        f"| {named(row)} | {row['batch']} | {row['frames_per_second']:.1f} | "
        f"{1000 * row['seconds_per_frame']:.1f} |"
        for row in result["rollouts"]
    ]
    return lines


def named(row: dict[str, Any]) -> str:
    """Precision and compilation as two cells."""
    return f"{NAMES[row['precision']]} | {'yes' if row['compile'] else 'no'}"


def main() -> None:
    """Measure one preset and write the tables."""
    torch._dynamo.config.recompile_limit = 64  # a rollout's cache has many states
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="smoke")
    parser.add_argument("--clips", type=int, help="clips a step (default: the preset's batch)")
    parser.add_argument("--aspect", type=float, default=1.0, help="width over height of frames")
    parser.add_argument("--steps", type=int, default=20, help="steps timed")
    parser.add_argument("--frames", type=int, default=16, help="imagined frames timed")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1, 64], help="batch sizes")
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    device = all_processes().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    slug = "-".join(name.lower().split())
    file = RESULTS / f"training-{slug}.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    results[options.preset] = run(options)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
    text = table(results, has_gpu=device.type == "cuda")
    file.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
