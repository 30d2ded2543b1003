"""Evidence about every patch of an imagined picture, for the confidence in pictures.

Everything is known at the time of the rollout: the real frames before it, the imagined latents and
pictures, and a hindcast, which imagines the last real frames from the first and compares. What the
tokenizer cannot paint shows in the round trip of the last real frame; what the dynamics do not
understand shows in the hindcast and in latents that drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.networks.pixel_confidence import largest_per_patch, patch_error, per_patch

HINDCAST = 3
"""Most real frames that are imagined for the hindcast."""
QUANTILE = 0.9
Maps = Float[Tensor, "time view rows columns"]


@dataclass(frozen=True, kw_only=True)
class ImaginedPictures:
    """One rollout: the real frames before it, and what was imagined after them."""

    context: UInt8[Tensor, "start view height width 3"]
    """Real frames at the model's size."""
    context_latents: Float[Tensor, "start view channel h w"]
    actions: Float[Tensor, "rows action"]
    """Row 0 belongs to the first context frame, as in `WorldModel.imagine`."""
    action_valid: Bool[Tensor, " rows"]
    states: Float[Tensor, "start 10"] | None
    """Canonical states of the robot at the context frames; None: unknown."""
    latents: Float[Tensor, "time view channel h w"]
    """Imagined latents."""
    shown: UInt8[Tensor, "time view height width 3"]
    """Their pictures."""
    view_valid: Bool[Tensor, " view"] | None = None
    """Cameras of the last context frame; None: all."""


def imagined_pictures(
    clip: LatentBatch,
    context: UInt8[Tensor, "start view height width 3"],
    *,
    latents: Float[Tensor, "time view channel h w"],
    shown: UInt8[Tensor, "time view height width 3"],
) -> ImaginedPictures:
    """One rollout over a clip that begins with its context frames."""
    start = len(context)
    mask = clip.view_valid
    return ImaginedPictures(
        context=context,
        context_latents=clip.latents[0, :start],
        actions=clip.actions[0, :-1],
        action_valid=clip.action_valid[0, :-1],
        states=None if clip.states is None else clip.states[0, :start],
        latents=latents,
        shown=shown,
        view_valid=None if mask is None else mask[0, start - 1],
    )


@torch.inference_mode()
def picture_evidence(
    model: WorldModel, rollout: ImaginedPictures
) -> Float[Tensor, "time view rows columns inputs"]:
    """Evidence about every patch of every imagined picture; see `NAMES` for the numbers."""
    last, time = rollout.context[-1:], len(rollout.shown)
    maps = {
        **_round_trip(model, rollout),
        **_latent_drift(rollout),
        **_motion(rollout),
        **_hindcast(model, rollout),
    }
    shown_motion = patch_error(rollout.shown, last)
    maps |= {
        "shown_change": logarithm(shown_motion),
        "shown_change_around": logarithm(around(shown_motion)),
        "shown_change_picture": logarithm(over_picture(shown_motion)),
        "contrast": logarithm(contrast(last)),
        "contrast_around": logarithm(around(contrast(last))),
        "contrast_shown": logarithm(contrast(rollout.shown)),
    }
    maps["horizon"] = torch.arange(1, time + 1).float().log()[:, None, None, None]
    shape = (time, *shown_motion.shape[1:])
    return torch.stack([maps[name].expand(shape) for name in NAMES], -1)


NAMES = (
    "round_trip", "round_trip_mean_around", "round_trip_around", "round_trip_largest",
    "round_trip_picture", "round_trip_quantile",
    "drift", "drift_around", "drift_picture", "drift_most", "step", "step_around",
    "shown_change", "shown_change_around", "shown_change_picture",
    "contrast", "contrast_around", "contrast_shown",
    "real_change", "real_change_around", "real_change_picture", "real_change_whole",
    "real_change_whole_around", "has_past", "path", "net_path",
    "hindcast_first", "hindcast", "hindcast_most", "hindcast_around", "hindcast_mean_around",
    "hindcast_picture_first", "hindcast_picture", "hindcast_quantile", "hindcast_growth",
    "hindcast_latent", "hindcast_latent_picture",
    "horizon",
)  # fmt: skip
"""Names of the evidence, in order."""


def logarithm(grey: Tensor) -> Tensor:
    """Logarithm of grey levels, finite at 0."""
    return (grey + 0.5).log()


def around(maps: Maps) -> Maps:
    """Maximum over the 3 x 3 patches around each."""
    return F.max_pool2d(maps, 3, stride=1, padding=1)


def mean_around(maps: Maps) -> Maps:
    """Mean over the 3 x 3 patches around each."""
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)


def over_picture(maps: Maps) -> Float[Tensor, "time view 1 1"]:
    """Mean over the picture."""
    return maps.mean((-2, -1), keepdim=True)


def quantile(maps: Maps) -> Float[Tensor, "time view 1 1"]:
    """Quantile over the picture."""
    return maps.flatten(-2).quantile(QUANTILE, dim=-1)[..., None, None]


def contrast(frames: UInt8[Tensor, "time view height width 3"]) -> Maps:
    """Standard deviation of the grey levels within each patch."""
    grey = frames.float().mean(-1)
    return (per_patch(grey.square()) - per_patch(grey).square()).clamp_min(0).sqrt()


def _to_patches(
    values: Float[Tensor, "time view h w"], like: UInt8[Tensor, "*batch height width 3"]
) -> Maps:
    """Values per latent position as values per patch."""
    rows, columns = patch_error(like[:1, :1], like[:1, :1]).shape[-2:]
    return F.interpolate(values, (rows, columns), mode="area")


def _round_trip(model: WorldModel, rollout: ImaginedPictures) -> dict[str, Tensor]:
    """What the tokenizer loses of the last real frame."""
    last = rollout.context[-1:]
    decoded = model.decode(rollout.context_latents[-1:].float()).cpu()
    error = patch_error(decoded, last)
    largest = largest_per_patch((decoded.float() - last.float()).abs().mean(-1))
    return {
        "round_trip": logarithm(error),
        "round_trip_mean_around": logarithm(mean_around(error)),
        "round_trip_around": logarithm(around(error)),
        "round_trip_largest": logarithm(largest),
        "round_trip_picture": logarithm(over_picture(error)),
        "round_trip_quantile": logarithm(quantile(error)),
    }


def _latent_drift(rollout: ImaginedPictures) -> dict[str, Tensor]:
    """How far the imagined latents are from the last real one, and from one another."""
    last, own = rollout.context_latents[-1:].float(), rollout.latents.float()
    drift = _to_patches(_distance(own, last), rollout.context)
    step = _to_patches(_distance(own, torch.cat((last, own[:-1]))), rollout.context)
    return {
        "drift": drift,
        "drift_around": around(drift),
        "drift_picture": over_picture(drift),
        "drift_most": drift.cummax(0).values,
        "step": step,
        "step_around": around(step),
    }


def _distance(a: Tensor, b: Tensor) -> Float[Tensor, "time view h w"]:
    """Root mean square difference over channels."""
    return (a - b).square().mean(2).sqrt()


def _motion(rollout: ImaginedPictures) -> dict[str, Tensor]:
    """Motion in the real frames, and of the commands since the last of them."""
    context, start = rollout.context, len(rollout.context)
    previous = patch_error(context[-1:], context[max(0, start - 2)][None])
    whole = patch_error(context[-1:], context[:1])
    rows = torch.where(rollout.action_valid[:, None], rollout.actions, 0)[start - 1 :].float()
    moved = rows[: len(rollout.shown), :3]
    return {
        "real_change": logarithm(previous),
        "real_change_around": logarithm(around(previous)),
        "real_change_picture": logarithm(over_picture(previous)),
        "real_change_whole": logarithm(whole),
        "real_change_whole_around": logarithm(around(whole)),
        "has_past": torch.full((1, 1, 1, 1), float(start > 1)),
        "path": moved.norm(dim=1).cumsum(0)[:, None, None, None],
        "net_path": moved.cumsum(0).norm(dim=1)[:, None, None, None],
    }


def _hindcast(model: WorldModel, rollout: ImaginedPictures) -> dict[str, Tensor]:
    """Error of the real frames imagined from the first; zeros where there is a single one."""
    names = [name for name in NAMES if name.startswith("hindcast")]
    frames = rollout.context[-(HINDCAST + 1) :]
    count, first = len(frames) - 1, len(rollout.context) - len(frames)
    if not count:
        return dict.fromkeys(names, torch.zeros(1, 1, 1, 1))
    latents = rollout.context_latents[first:].float()
    rows = slice(first, first + count)
    imagined = model.imagine(
        latents[None, :1],
        rollout.actions[None, rows].float(),
        action_valid=rollout.action_valid[None, rows],
        epsilon=(),
        first_state=None if rollout.states is None else rollout.states[None, first],
        view_valid=None if rollout.view_valid is None else rollout.view_valid[None, None],
    ).latents[0]
    shown = model.show(imagined, frames[0], last_latents=latents[0], seen=rollout.view_valid).cpu()
    error = patch_error(shown, frames[1:])
    drift = _to_patches(_distance(imagined.cpu(), latents[1:]), frames)[-1:]
    begin, end = error[:1], error[-1:]
    return {
        "hindcast_first": logarithm(begin),
        "hindcast": logarithm(end),
        "hindcast_most": logarithm(error.max(0, keepdim=True).values),
        "hindcast_around": logarithm(around(end)),
        "hindcast_mean_around": logarithm(mean_around(end)),
        "hindcast_picture_first": logarithm(over_picture(begin)),
        "hindcast_picture": logarithm(over_picture(end)),
        "hindcast_quantile": logarithm(quantile(end)),
        "hindcast_growth": logarithm(over_picture(end)) - logarithm(over_picture(begin)),
        "hindcast_latent": drift,
        "hindcast_latent_picture": over_picture(drift),
    }
