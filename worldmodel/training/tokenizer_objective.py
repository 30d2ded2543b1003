"""Training objective of the tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from worldmodel.networks.images import resize, to_model
from worldmodel.networks.tokenizer import Tokenizer
from worldmodel.training.randomness import StepRandomness
from worldmodel.training.tokenizer_losses import PerceptualDistance, structural_similarity


@dataclass(frozen=True, kw_only=True)
class TokenizerLoss:
    """Weights of the reconstruction losses; 0 skips a term and its cost."""

    absolute: float = 1.0
    """Mean absolute error of pixels in [-1, 1]."""
    squared: float = 4.0
    """Mean squared error of pixels in [-1, 1]."""
    structure: float = 0.2
    """1 - multi-scale SSIM; images need at least 11 pixels a side."""
    perceptual: float = 0.0
    """Distance between random features, as in LPIPS."""
    moving: float = 8.0
    """Extra weight of pixels that change within an episode, in both pixel errors."""
    latent_noise: float = 0.1
    """Noise on the latent, in its standard deviations; makes the decoder robust to small errors."""
    scale: float = 1e-3
    """Regularisation of latents to zero mean and unit scale; keeps the later whitening small."""

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in asdict(self).items() if not value >= 0}
        if wrong:
            raise ValueError(f"The weights of `TokenizerLoss` must not be negative, got {wrong}.")
        if not self.absolute + self.squared + self.structure + self.perceptual:
            raise ValueError(
                "`TokenizerLoss` needs one of `absolute`, `squared`, `structure` and `perceptual` "
                "above 0, got 0 for all."
            )


class TokenizerObjective(nn.Module):
    """Reconstruction loss of single frames, weighted towards pixels that change in an episode.

    Batches are two frames of one episode. Moving parts (the arm, the object) cover few pixels; an
    unweighted loss would spend the latent on the background.
    """

    def __init__(
        self, tokenizer: Tokenizer, image_size: tuple[int, int], loss: TokenizerLoss
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.loss = loss
        self.perceptual = PerceptualDistance()

    def forward(
        self, batch: UInt8[Tensor, "batch 2 view height width 3"], randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of all terms; logs each term and the PSNR in dB."""
        pixels = resize(to_model(batch), self.image_size)
        flat = rearrange(pixels, "b t v c h w -> (b t v) c h w")
        latents = self.tokenizer.encode(flat)
        spread = latents.detach().float().std((0, 2, 3), keepdim=True)
        noise = randomness.normal_like(latents, num_items=len(batch))
        decoded = self.tokenizer.decode(latents + self.loss.latent_noise * spread * noise).float()
        terms = self.terms(decoded, flat, self.weight(pixels))
        terms["scale"] = distance_from_unit_scale(latents.float())
        loss = torch.stack([getattr(self.loss, name) * term for name, term in terms.items()]).sum()
        psnr = -10 * ((decoded.detach() - flat).square().mean() / 4).log10()
        return loss, {"psnr_db": psnr} | {name: term.detach() for name, term in terms.items()}

    def terms(
        self,
        decoded: Float[Tensor, "frames 3 h w"],
        frames: Float[Tensor, "frames 3 h w"],
        weight: Float[Tensor, "frames 1 h w"],
    ) -> dict[str, Tensor]:
        """Reconstruction losses with a weight above 0."""
        error, total = decoded - frames, 3 * weight.sum()
        terms = {}
        if self.loss.absolute:
            terms["absolute"] = (weight * error.abs()).sum() / total
        if self.loss.squared:
            terms["squared"] = (weight * error.square()).sum() / total
        if self.loss.structure:
            terms["structure"] = 1 - structural_similarity(decoded, frames)
        if self.loss.perceptual:
            terms["perceptual"] = self.perceptual(decoded, frames)
        return terms

    def weight(self, pixels: Float[Tensor, "batch 2 view 3 h w"]) -> Float[Tensor, "frames 1 h w"]:
        """Weight of each pixel of both frames, larger where they differ."""
        moved = (pixels[:, :1] - pixels[:, 1:]).abs().amax(3, keepdim=True) > 0.15
        weight = 1 + self.loss.moving * moved.float()
        return rearrange(weight.expand(-1, 2, -1, -1, -1, -1), "b t v 1 h w -> (b t v) 1 h w")


def distance_from_unit_scale(latents: Float[Tensor, "batch channel h w"]) -> Float[Tensor, ""]:
    """Distance of the latents from zero mean and unit standard deviation, over channels."""
    spread, mean = latents.std((0, 2, 3)), latents.mean((0, 2, 3))
    return (spread.log().square() + mean.square()).mean()
