"""Stand-alone out-of-distribution detectors on features; higher scores are less familiar.

Features are NumPy arrays or torch tensors on any device, with any leading axes: [n, d] for whole
frames, [n, h, w, d] for every latent position of a spatial map. Positions share one fit, except in
`PositionGaussian`. Scores have the features' type and device, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from worldmodel.monitors.channels.gaussian import RIDGE
from worldmodel.monitors.errors import require_fitted

CHUNK = 1024
"""Rows compared with the bank per batch."""

Array = TypeVar("Array", np.ndarray, Tensor)
LearnedType = TypeVar("LearnedType", bound="Learned")


@runtime_checkable
class FeatureDetector(Protocol):
    """A feature detector of pytorch-ood, or any object with these two methods."""

    def fit_features(self, z: Tensor, y: Tensor, /) -> object:
        """Fit to familiar features [n, d] and their classes, counted from 0."""
        ...

    def predict_features(self, z: Tensor, /) -> Tensor:
        """One score per row; higher is less familiar."""
        ...


class Learned:
    """Base of detectors: saves, restores and moves the learned tensors."""

    LEARNED: ClassVar[tuple[str, ...]] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, self.LEARNED[0])
        return {name: getattr(self, name).cpu().numpy() for name in self.LEARNED}

    @classmethod
    def from_arrays(cls: type[LearnedType], arrays: Mapping[str, np.ndarray]) -> LearnedType:
        """Inverse of `arrays`; constructor arguments used only by `fit` are not restored."""
        detector = cls()
        for name in cls.LEARNED:
            setattr(detector, name, torch.from_numpy(np.array(arrays[name])))
        return detector

    def _rows(self, features: Float[Array, "*n d"]) -> Float64[Tensor, "*n d"]:
        """Check features to score; move the learned tensors to their device."""
        require_fitted(self, self.LEARNED[0])
        first = getattr(self, self.LEARNED[0])
        rows = require_features(features, first.shape[-1])
        if first.device != rows.device:
            for name in self.LEARNED:
                setattr(self, name, getattr(self, name).to(rows.device))
        return rows


class Mahalanobis(Learned):
    """Mahalanobis distance under a shrunk covariance, divided by the square root of d."""

    LEARNED = ("mean_", "whitener_")
    mean_: Float64[Tensor, " d"]
    whitener_: Float64[Tensor, "d d"]

    def fit(self, features: Float[Array, "*n d"]) -> Mahalanobis:
        """Learn from familiar features."""
        self.mean_, self.whitener_ = batched_whitening(flat_rows(features))
        return self

    def score(self, features: Float[Array, "*n d"]) -> Float64[Array, "*n"]:
        """1 is the deviation of one typical feature."""
        rows = self._rows(features)
        return like(features, squared_distance(rows, self.mean_, self.whitener_).sqrt())


class PositionGaussian(Learned):
    """Mahalanobis distance with a separate Gaussian for each position, divided by the root of d.

    PaDiM (Defard et al. 2020, arXiv:2011.08785), for fixed cameras, where each position has its own
    familiar content. Stores d * d numbers per position.
    """

    LEARNED = ("mean_", "whitener_")
    mean_: Float64[Tensor, "*place d"]
    whitener_: Float64[Tensor, "*place d d"]

    def fit(self, features: Float[Array, "n *place d"]) -> PositionGaussian:
        """Fit to feature maps of familiar frames."""
        rows = require_features(features, features.shape[-1])
        if len(rows) < 2:
            raise ValueError(f"`features` needs at least 2 frames, got {len(rows)}.")
        self.mean_, self.whitener_ = batched_whitening(rows.movedim(0, -2))
        return self

    def score(self, features: Float[Array, "n *place d"]) -> Float64[Array, " n *place"]:
        """1 is the deviation of one typical feature of that position."""
        rows = self._rows(features)
        place, fitted = tuple(rows.shape[1:-1]), tuple(self.mean_.shape[:-1])
        if place != fitted:
            raise ValueError(f"`features` must be maps of {fitted} positions, got {place}.")
        squared = squared_distance(rows.movedim(0, -2), self.mean_[..., None, :], self.whitener_)
        return like(features, squared.movedim(-1, 0).sqrt())


class RelativeMahalanobis(Learned):
    """Relative Mahalanobis distance (Ren et al. 2021, arXiv:2106.09022), divided by d.

    Squared distance to the nearest group minus squared distance to the pooled Gaussian. Groups have
    their own means and share a covariance. Variation common to all groups cancels.
    """

    LEARNED = ("mean_", "whitener_", "group_means_", "group_whitener_")
    mean_: Float64[Tensor, " d"]
    whitener_: Float64[Tensor, "d d"]
    group_means_: Float64[Tensor, "k d"]
    group_whitener_: Float64[Tensor, "d d"]

    def fit(self, features: Float[Array, "*n d"], groups: Int[Array, "*n"]) -> RelativeMahalanobis:
        """Fit to familiar features and their groups, for example tasks, cameras or positions."""
        rows = flat_rows(features)
        index = group_index(groups, rows)
        num_groups = int(index.max()) + 1
        if num_groups < 2:
            raise ValueError("`groups` must name at least 2 groups, got 1; use Mahalanobis.")
        self.mean_, self.whitener_ = batched_whitening(rows)
        self.group_means_ = torch.stack([rows[index == k].mean(0) for k in range(num_groups)])
        _, self.group_whitener_ = batched_whitening(rows - self.group_means_[index])
        return self

    def score(self, features: Float[Array, "*n d"]) -> Float64[Array, "*n"]:
        """Negative where one group explains the features better than the pooled Gaussian."""
        rows = self._rows(features)
        per_group = [
            squared_distance(rows, mean, self.group_whitener_) for mean in self.group_means_
        ]
        common = squared_distance(rows, self.mean_, self.whitener_)
        return like(features, torch.stack(per_group).amin(0) - common)


class NearestNeighbours(Learned):
    """Distance to the k-th nearest familiar feature vector, all scaled to length 1.

    Sun et al. 2022 (arXiv:2204.06507). Makes no assumption about the feature distribution.
    """

    LEARNED = ("bank_", "k_")
    bank_: Float64[Tensor, "m d"]
    k_: Int[Tensor, ""]

    def __init__(self, *, k: int = 10, bank_size: int = 5000, seed: int = 0) -> None:
        if not 1 <= k <= bank_size:
            raise ValueError(f"`k` must lie in [1, `bank_size`], got {k} and {bank_size}.")
        self.k, self.bank_size, self.seed = k, bank_size, seed

    def fit(self, features: Float[Array, "*n d"]) -> NearestNeighbours:
        """Store familiar features, or `bank_size` of them drawn uniformly."""
        rows = flat_rows(features)
        if len(rows) < self.k:
            raise ValueError(f"`features` needs at least `k`={self.k} rows, got {len(rows)}.")
        if len(rows) > self.bank_size:
            rng = np.random.default_rng(self.seed)  # the same sample on every device
            rows = rows[torch.from_numpy(rng.choice(len(rows), self.bank_size, replace=False))]
        self.bank_, self.k_ = unit_length(rows), torch.tensor(self.k)
        return self

    def score(self, features: Float[Array, "*n d"]) -> Float64[Array, "*n"]:
        """Between 0 and 2."""
        rows, k = unit_length(self._rows(features)), int(self.k_)
        cosines = torch.cat([
            (chunk @ self.bank_.T).topk(k).values[:, -1]
            for chunk in torch.split(rows.reshape(-1, rows.shape[-1]), CHUNK)
        ])  # fmt: skip
        return like(features, (2 - 2 * cosines).clamp_min(0).sqrt().reshape(rows.shape[:-1]))


class PcaResidual(Learned):
    """Residual of standardised features outside the principal subspace of familiar ones.

    Root mean square over the d features.
    """

    LEARNED = ("mean_", "scale_", "components_")
    mean_: Float64[Tensor, " d"]
    scale_: Float64[Tensor, " d"]
    components_: Float64[Tensor, "kept d"]

    def __init__(self, *, explained: float = 0.95) -> None:
        if not 0 < explained < 1:
            raise ValueError(f"`explained` must lie in (0, 1), got {explained}.")
        self.explained = explained

    def fit(self, features: Float[Array, "*n d"]) -> PcaResidual:
        """Keep the fewest components that explain at least the share `explained` of variance."""
        rows = flat_rows(features)
        self.mean_, self.scale_ = rows.mean(0), deviation(rows)
        standard = (rows - self.mean_) / self.scale_
        variance, axes = torch.linalg.eigh(standard.T @ standard)
        share = variance.flip(0).cumsum(0) / variance.sum().clamp_min(torch.finfo().tiny)
        count = int((share < self.explained).sum()) + 1
        self.components_ = axes.T.flip(0)[:count].contiguous()
        return self

    def score(self, features: Float[Array, "*n d"]) -> Float64[Array, "*n"]:
        """Scores in standard deviations of a familiar feature."""
        rows = (self._rows(features) - self.mean_) / self.scale_
        residual = rows - rows @ self.components_.T @ self.components_
        return like(features, (residual**2).mean(-1).sqrt())


class PytorchOod:
    """Adapter that gives a pytorch-ood detector the same `fit` and `score`.

    Pass the detector without a network, for example `PytorchOod(KNN(None, k=10))`; its
    `fit_features` and `predict_features` get float32. There is no `arrays`: save the detector
    itself.
    """

    def __init__(self, detector: object) -> None:
        if not isinstance(detector, FeatureDetector):
            raise ValueError(
                "`detector` must have `fit_features` and `predict_features`, got a "
                f"{type(detector).__name__}; detectors of logits or inputs need the network itself."
            )
        self.detector = detector

    def fit(
        self, features: Float[Array, "*n d"], groups: Int[Array, "*n"] | None = None
    ) -> PytorchOod:
        """Fit to familiar features and, if the detector needs classes, their `groups`."""
        rows = flat_rows(features)
        index = rows.new_zeros(len(rows), dtype=torch.long)
        self.detector.fit_features(
            rows.float(), index if groups is None else group_index(groups, rows)
        )
        self.num_features_ = rows.shape[-1]
        return self

    def score(self, features: Float[Array, "*n d"]) -> Float64[Array, "*n"]:
        """The detector's own scores."""
        require_fitted(self, "num_features_")
        rows = require_features(features, self.num_features_)
        scores = self.detector.predict_features(rows.reshape(-1, rows.shape[-1]).float())
        if scores.numel() != rows.shape[:-1].numel():
            raise ValueError(
                f"`detector` must give one score per row, got {tuple(scores.shape)} for "
                f"{rows.shape[:-1].numel()} rows."
            )
        return like(features, scores.detach().to(rows).reshape(rows.shape[:-1]))


def require_features(features: Float[Array, "*n d"], num_features: int) -> Float64[Tensor, "*n d"]:
    """Convert to a finite float64 tensor with `num_features` columns, or raise."""
    if features.shape[-1] != num_features:
        raise ValueError(
            f"`features` must have {num_features} numbers per row, got {features.shape[-1]}."
        )
    rows = tensor(features).double()
    if not rows.isfinite().all():
        raise ValueError("`features` holds NaN or infinite numbers.")
    return rows


def flat_rows(features: Float[Array, "*n d"]) -> Float64[Tensor, "rows d"]:
    """Flatten to rows and check that there are at least two."""
    rows = require_features(features, features.shape[-1]).reshape(-1, features.shape[-1])
    if len(rows) < 2:
        raise ValueError(f"`features` needs at least 2 rows, got {len(rows)}.")
    return rows


def group_index(groups: Int[Array, "*n"], rows: Float64[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
    """Group of each row, counted from 0 without gaps."""
    labels = tensor(groups).to(rows.device).ravel()
    if len(labels) != len(rows):
        raise ValueError(
            f"`groups` must name the group of every row, got {len(labels)} for {len(rows)} rows."
        )
    return torch.unique(labels, return_inverse=True)[1]


def tensor(values: Array) -> Tensor:
    """Detach a tensor; copy an array, as torch accepts neither read-only nor reversed ones."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C"))


def like(features: Array, scores: Tensor) -> Array:
    """Convert scores to the type of the features: array or tensor."""
    return scores if isinstance(features, Tensor) else scores.numpy()


def batched_whitening(
    rows: Float64[Tensor, "*place n d"],
) -> tuple[Float64[Tensor, "*place d"], Float64[Tensor, "*place d d"]]:
    """`gaussian.fit_whitening` in torch, separately for each place."""
    mean, scale = rows.mean(-2), deviation(rows)
    covariance = batched_ledoit_wolf((rows - mean[..., None, :]) / scale[..., None, :])
    covariance = covariance + RIDGE * torch.eye(rows.shape[-1]).to(rows)
    whitener = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return mean, whitener / scale[..., None, :]


def batched_ledoit_wolf(centred: Float64[Tensor, "*place n d"]) -> Float64[Tensor, "*place d d"]:
    """Covariance of centred rows, shrunk towards a multiple of the identity (2004)."""
    n, d = centred.shape[-2:]
    covariance = centred.mT @ centred / n
    middle = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    target = middle * torch.eye(d).to(centred)
    distance = ((covariance - target) ** 2).sum((-2, -1))
    noise = (centred**2).sum(-1).square().mean(-1) - (covariance**2).sum((-2, -1))
    weight = (noise.clamp_min(0) / n / distance).nan_to_num(1.0).clamp(max=1)[..., None, None]
    return (1 - weight) * covariance + weight * target


def deviation(rows: Float64[Tensor, "*place n d"]) -> Float64[Tensor, "*place d"]:
    """Standard deviation of each feature; 1 for constant features."""
    varies = rows.amax(-2) > rows.amin(-2)
    return torch.where(varies, rows.std(-2, correction=0), 1.0)


def squared_distance(
    rows: Float64[Tensor, "*any d"],
    mean: Float64[Tensor, "*some d"],
    whitener: Float64[Tensor, "*place d d"],
) -> Float64[Tensor, "*any"]:
    """Squared distance of rows to a mean after whitening, divided by the number of features."""
    return (((rows - mean) @ whitener.mT) ** 2).mean(-1)


def unit_length(rows: Float64[Tensor, "*n d"]) -> Float64[Tensor, "*n d"]:
    """Scale rows to length 1; rows of zeros stay zero."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)
