"""Speed of training and imagination of a preset: step time, frames/s, MFU, memory.

    python -m benchmarks.speed.training --preset bridge-256 --clips 16

Clips are noise of the preset's shape, because speed does not depend on their content. Results of a
preset replace its earlier ones in training-<device>.json in the results folder; the Markdown table
next to it is made from that file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from benchmarks.provenance import RESULTS, git_commit, processor, today, versions
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
"""Steps before timing, for compilation and the allocator."""


def hardware(device: torch.device) -> dict[str, str]:
    """Hardware, load, versions and commit."""
    facts = {
        "cpu": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"load {os.getloadavg()[0]:.1f} over the last minute"
    }
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        facts["gpu"] = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB"
    facts["versions"] = versions("torch", "accelerate", "worldmodel")
    return {**facts, "commit": f"commit {git_commit()}"}


def network_config(preset: Preset, aspect: float) -> DynamicsConfig:
    """Network of the preset for frames of `aspect` (width over height) and 7-dim actions."""
    assert isinstance(preset.dynamics, DynamicsConfig), "only transformers are measured here"
    unit = preset.tokenizer.stride * preset.dynamics.patch
    columns = round(preset.image_height * aspect / unit) * preset.dynamics.patch
    chunk = preset.frame_stride if preset.action_chunk == "encode" else 1
    return replace(
        preset.dynamics,
        channels=preset.tokenizer.channels,
        height=preset.image_height // preset.tokenizer.stride,
        width=columns,
        views=preset.num_cameras,
        action_dim=7 * chunk,
    )


def time_training(
    preset: Preset, config: DynamicsConfig, computing: Computing, *, clips: int, steps: int
) -> dict[str, Any]:
    """Time training steps."""
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
    """Time rollouts of a batch without decoding."""
    device = all_processes().device
    torch.manual_seed(0)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if computing.precision == "bf16" else torch.float32
    dynamics = Dynamics(config).to(device, dtype).eval()
    if computing.compile_blocks:
        for block in blocks(dynamics):
            block.compile()
    start_frames = preset.longest_start
    warm_up = config.context + 2  # covers every cache state, each compiled once
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
    """Measure a preset."""
    preset = PRESETS[options.preset]
    config, device = network_config(preset, options.aspect), all_processes().device
    clips = options.clips or preset.dynamics_loop.batch_size
    training, rollouts = [], []
    for precision in options.precisions:
        for compiled in (False, True) if options.compile else (False,):
            computing = replace(preset.computing, precision=precision, compile_blocks=compiled)
            variant = {"precision": precision, "compile": compiled}
            figures = time_training(preset, config, computing, clips=clips, steps=options.steps)
            training.append({**variant, **figures})
            print(training[-1], flush=True)
            for batch in options.rollouts:
                figures = time_rollout(
                    preset, config, computing, batch=batch, num_frames=options.frames
                )
                rollouts.append({**variant, "batch": batch, **figures})
                print(rollouts[-1], flush=True)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Dynamics(config).parameters())
    return {
        "date": today(),
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
    """Results of every preset as Markdown."""
    lines = [
        "# Speed of training and imagination",
        "",
        "Made by `python -m benchmarks.speed.training`. MFU as in PaLM (arXiv:2204.02311): the "
        "model's operations divided by those of a large matrix product in the same time, measured "
        "on the same device and in the same precision. Rollouts without decoding.",
    ]
    if not has_gpu:
        lines += [
            "",
            "**CPU only.** `bridge-256` and `droid-3view` need a GPU; "
            "`python -m benchmarks.speed.training --preset bridge-256 --clips 16` adds them.",
        ]
    for name, result in results.items():
        lines += ["", f"## {name}", "", settings(result), "", *rows(result)]
    return "\n".join(lines) + "\n"


def settings(result: dict[str, Any]) -> str:
    """Describe hardware and settings."""
    views, channels, height, width = result["latents"]
    peaks = ", ".join(f"{NAMES[k]} {v:.2f}" for k, v in result["peak_tflops"].items())
    blocks_text = "recomputed" if result["checkpoint_blocks"] else "kept"
    return (
        f"{result['date']}; {'; '.join(result['hardware'].values())}. Dynamics of "
        f"{result['parameters']:,} parameters, latents of {views}x{channels}x{height}x{width}, "
        f"{result['clips']} clips of {result['clip_frames']} frames per step, blocks "
        f"{blocks_text}; mean of {result['timed_steps']} steps. Sampler steps per frame: "
        f"{result['num_steps']}. Peak of the device in TFLOP/s: {peaks}."
    )


def rows(result: dict[str, Any]) -> list[str]:
    """Two tables of a preset."""
    columns = "| precision | compiled | s / step | frames/s | MFU | GiB estimated | GiB measured |"
    lines = [columns, "|---" * 7 + "|"]
    for row in result["training"]:
        peak = row["measured_peak_gib"]
        lines.append(
            f"| {variant_cells(row)} | {row['seconds_per_step']:.3f} | "
            f"{row['frames_per_second']:.0f} | {row['mfu']:.2f} | {row['estimated_gib']:.2f} | "
            f"{'n/a' if peak is None else f'{peak:.2f}'} |"
        )
    lines += ["", "| precision | compiled | rollouts | frames/s | ms / frame |", "|---" * 5 + "|"]
    lines += [
        f"| {variant_cells(row)} | {row['batch']} | {row['frames_per_second']:.1f} | "
        f"{1000 * row['seconds_per_frame']:.1f} |"
        for row in result["rollouts"]
    ]
    return lines


def variant_cells(row: dict[str, Any]) -> str:
    """Precision and compilation as two cells."""
    return f"{NAMES[row['precision']]} | {'yes' if row['compile'] else 'no'}"


def main() -> None:
    """Measure one preset and write the tables."""
    torch._dynamo.config.recompile_limit = 64  # the cache of a rollout has many states
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="smoke")
    parser.add_argument(
        "--clips", type=int, help="clips per step (default: the preset's batch size)"
    )
    parser.add_argument("--aspect", type=float, default=1.0, help="width over height of frames")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--frames", type=int, default=16, help="timed imagined frames")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1, 64], help="batch sizes")
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    device = all_processes().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    slug = "-".join(name.lower().split())
    file = options.out / f"training-{slug}.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    results[options.preset] = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = table(results, has_gpu=device.type == "cuda")
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
