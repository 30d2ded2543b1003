"""Success classifiers: one from latents, and a baseline from actions alone.

The action-only classifier sees no image. Report it next to every evaluation in imagination: if it
does as well, the world model adds nothing.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class SuccessClassifier(nn.Module):
    """Classifier of whether a frame shows the task done, from the latents of its views."""

    def __init__(self, channels: int, views: int, width: int = 64) -> None:
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
            nn.Dropout(0.3),
            nn.Linear(16 * width, 1),
        )

    def forward(
        self, latents: Float[Tensor, "batch time view channel h w"]
    ) -> Float[Tensor, "batch time"]:
        """Success logit of each frame."""
        b = len(latents)
        logits = self.net(rearrange(latents, "b t v c h w -> (b t) (v c) h w"))
        return rearrange(logits, "(b t) 1 -> b t", b=b)


class ActionSuccessClassifier(nn.Module):
    """Classifier of whether an episode succeeds, from its canonical actions alone."""

    def __init__(self, action_dim: int, width: int = 64) -> None:
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
            nn.Linear(4 * width, 1),
        )

    def forward(self, actions: Float[Tensor, "batch time action"]) -> Float[Tensor, " batch"]:
        """Success logit of the whole episode.

        The inputs are the actions and their cumulative sum, the displacement of the hand.
        """
        both = [actions, actions.cumsum(1)]
        return self.net(rearrange(both, "two b t a -> b (two a) t"))[:, 0]
