"""Was the task done? Judges of success from imagined latents, and from actions alone.

The judge of actions sees no image. It is the baseline every imagined evaluation must be printed
beside: where it does as well, the world model added nothing.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class SuccessClassifier(nn.Module):
    """Probability that a frame shows the task done, from the latents of its views."""

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
        """Logit of success per frame."""
        b = len(latents)
        logits = self.net(rearrange(latents, "b t v c h w -> (b t) (v c) h w"))
        return rearrange(logits, "(b t) 1 -> b t", b=b)


class ActionSuccessClassifier(nn.Module):
    """Probability that an episode succeeds, from its canonical actions alone."""

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
        """Logit of success of the whole episode.

        The network reads the actions and their running sum: where they have taken the hand so far.
        """
        both = [actions, actions.cumsum(1)]
        return self.net(rearrange(both, "two b t a -> b (two a) t"))[:, 0]
