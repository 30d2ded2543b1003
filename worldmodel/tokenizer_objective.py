"""What training a small tokenizer minimises."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn

from worldmodel.model import resize
from worldmodel.objectives import noise_like
from worldmodel.tokenizers import Tokenizer, to_model


class TokenizerObjective(nn.Module):
    """Reconstruct single frames; pixels that change within an episode count more.

    Batches are two frames of one episode. What moves (the arm, the object) covers few pixels, and a
    plain loss spends the latent on the rest. Noise on the latent makes the decoder forgive small
    errors of the dynamics.
    """

    moving_weight = 8.0
    latent_noise = 0.1

    def __init__(self, tokenizer: Tokenizer, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.image_size = image_size

    def forward(
        self, batch: UInt8[Tensor, "batch 2 view height width 3"], generator: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted mixture of absolute and squared error, and the PSNR in dB."""
        pixels = resize(to_model(batch), self.image_size)
        flat = rearrange(pixels, "b t v c h w -> (b t v) c h w")
        latents = self.tokenizer.encode(flat)
        spread = latents.detach().float().std((0, 2, 3), keepdim=True)
        noisy = latents + self.latent_noise * spread * noise_like(latents, generator)
        error = self.tokenizer.decode(noisy).float() - flat
        terms = error.abs() + 4 * error.square()
        weight = self.weight(pixels)
        # Keep the latents near unit scale: whitening fitted afterwards is then a small correction.
        mean = latents.float().mean((0, 2, 3), keepdim=True)
        scale = (spread.log().square() + mean.square()).mean()
        loss = (weight * terms).sum() / (3 * weight.sum()) + 1e-3 * scale
        return loss, {"psnr_db": -10 * (error.detach().square().mean() / 4).log10()}

    def weight(self, pixels: Float[Tensor, "batch 2 view 3 h w"]) -> Float[Tensor, "frames 1 h w"]:
        """Weight of each pixel of both frames: more where they differ."""
        moved = (pixels[:, :1] - pixels[:, 1:]).abs().amax(3, keepdim=True) > 0.15
        weight = 1 + self.moving_weight * moved.float()
        return rearrange(weight.expand(-1, 2, -1, -1, -1, -1), "b t v 1 h w -> (b t v) 1 h w")
