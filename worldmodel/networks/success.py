"""Success classifiers: one from latents, and a baseline from actions alone.

The action-only classifier sees no image. Report it next to every evaluation in imagination: if it
does as well, the world model adds nothing.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


def of_task(
    logits: Float[Tensor, " batch *rest tasks"], task: Int[Tensor, " batch"] | None
) -> Float[Tensor, " batch *rest"]:
    """Logit of the task of each episode; None: of the first task.

    >>> import torch
    >>> of_task(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    if task is None:
        return logits[..., 0]
    number = task.clamp_min(0).view(-1, *[1] * (logits.ndim - 1))
    return logits.take_along_dim(number, -1)[..., 0]


class SuccessClassifier(nn.Module):
    """Classifier of whether a frame shows the task done, from the latents of its views."""

    def __init__(self, channels: int, views: int, width: int = 64, *, tasks: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels * views, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16 * width, tasks),
        )

    def forward(
        self,
        latents: Float[Tensor, "batch time view channel h w"],
        task: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Success logit of each frame, for the task of its episode (None: the first)."""
        logits = self.net(rearrange(latents, "b t v c h w -> (b t) (v c) h w"))
        return of_task(logits.unflatten(0, latents.shape[:2]), task)


class ActionSuccessClassifier(nn.Module):
    """Classifier of whether an episode succeeds, from its canonical actions alone."""

    def __init__(self, action_dim: int, width: int = 64, *, tasks: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(2 * action_dim),
            nn.Conv1d(2 * action_dim, width, 5, padding=2),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Conv1d(width, width, 5, padding=2, stride=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool1d(4),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * width, tasks),
        )

    def forward(
        self,
        actions: Float[Tensor, "batch time action"],
        task: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Success logit of the whole episode, for its task (None: the first).

        The inputs are the actions and their cumulative sum, the displacement of the hand.
        """
        both = [actions, actions.cumsum(1)]
        return of_task(self.net(rearrange(both, "two b t a -> b (two a) t")), task)
