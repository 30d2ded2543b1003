"""Pixels of imagined frames while the next ones are imagined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import UInt8
from torch import Tensor

from worldmodel.model import WorldModel
from worldmodel.networks.rollout import ImaginedFrame

Pixels = UInt8[Tensor, "batch view height width 3"]


def decode_behind(
    model: WorldModel, frames: Iterable[ImaginedFrame]
) -> Iterator[tuple[ImaginedFrame, Pixels]]:
    """Frames as they come, each with its pixels on the CPU, one frame late.

    Another thread decodes a frame while `frames` imagines the next; on a GPU it does so on a stream
    of its own and copies into pinned memory.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        last: tuple[ImaginedFrame, Future[Pixels]] | None = None
        for frame in frames:
            made = None if not frame.latent.is_cuda else torch.cuda.current_stream().record_event()
            following = frame, pool.submit(_pixels, model, frame.latent, made)
            if last is not None:
                yield last[0], last[1].result()
            last = following
        if last is not None:
            yield last[0], last[1].result()


def _pixels(model: WorldModel, latent: Tensor, made: torch.cuda.Event | None) -> Pixels:
    """Decode once the latent is made, without holding up what made it."""
    if made is None:
        return model.decode(latent)
    stream = torch.cuda.Stream(latent.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        stream.wait_event(made)
        pixels = model.decode(latent)
        host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        host.copy_(pixels, non_blocking=True)
    stream.synchronize()
    return host
