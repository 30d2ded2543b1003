"""Detectors of unfamiliar features that stand alone: fitted on familiar ones, higher is stranger.

Features are NumPy arrays or torch tensors on any device, with any leading axes: [n, d] for whole
frames, [n, h, w, d] for every latent position of a spatial map. Positions share one fit, except in
`PositionGaussian`. Scores come back as what the features were, on their device, in float64.
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
"""Rows compared with the whole bank at once."""

Array = TypeVar("Array", np.ndarray, Tensor)
LearnedType = TypeVar("LearnedType", bound="Learned")


@runtime_checkable
class FeatureDetector(Protocol):
    """A detector of pytorch-ood that works on features, or any other with these two methods."""

    def fit_features(self, z: Tensor, y: Tensor, /) -> object:
        """Learn from familiar features [n, d] and the class of each, counted from 0."""
        ...

    def predict_features(self, z: Tensor, /) -> Tensor:
        """One score per row; higher is less familiar."""
        ...


class Learned:
    """A detector's learned tensors: out, in, and on the device where they are needed."""

    LEARNED: ClassVar[tuple[str, ...]] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, as plain arrays."""
        require_fitted(self, self.LEARNED[0])
        return {name: getattr(self, name).cpu().numpy() for name in self.LEARNED}

    @classmethod
    def from_arrays(cls: type[LearnedType], arrays: Mapping[str, np.ndarray]) -> LearnedType:
        """The inverse of `arrays`; arguments of the constructor that `fit` alone needs are lost."""
        detector = cls()
        for name in cls.LEARNED:
            setattr(detector, name, torch.from_numpy(np.array(arrays[name])))
        return detector

    def _rows(self, features: Float[Array, "*n d"]) -> Float64[Tensor, "*n d"]:
        """Features to score; what was learned moves to their device."""
        require_fitted(self, self.LEARNED[0])
        first = getattr(self, self.LEARNED[0])
        rows = require_features(features, first.shape[-1])
        if first.device != rows.device:
            for name in self.LEARNED:
                setattr(self, name, getattr(self, name).to(rows.device))
        return rows


class Mahalanobis(Learned):
    """Distance to the familiar mean under their shrunk covariance, divided by the root of d."""

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
    """Distance to the familiar mean of the same position, under that position's shrunk covariance.

    PaDiM (Defard et al. 2020, arXiv:2011.08785), for cameras that stand still: what is familiar in
    one corner is strange in another. Divided by the root of d, as in `Mahalanobis`. Keeps d * d
    numbers per position.
    """

    LEARNED = ("mean_", "whitener_")
    mean_: Float64[Tensor, "*place d"]
    whitener_: Float64[Tensor, "*place d d"]

    def fit(self, features: Float[Array, "n *place d"]) -> PositionGaussian:
        """Learn from the maps of familiar frames."""
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
    """Squared distance to the nearest group less that to all together, divided by d.

    Ren et al. 2021 (arXiv:2106.09022): groups have their own means and share a covariance. What all
    groups vary in alike cancels, and no longer hides what sets the unfamiliar apart.
    """

    LEARNED = ("mean_", "whitener_", "group_means_", "group_whitener_")
    mean_: Float64[Tensor, " d"]
    whitener_: Float64[Tensor, "d d"]
    group_means_: Float64[Tensor, "k d"]
    group_whitener_: Float64[Tensor, "d d"]

    def fit(self, features: Float[Array, "*n d"], groups: Int[Array, "*n"]) -> RelativeMahalanobis:
        """Learn from familiar features and what each belongs to: a task, a camera, a position."""
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
        """Negative where one group explains the features better than all together."""
        rows = self._rows(features)
        own = [squared_distance(rows, mean, self.group_whitener_) for mean in self.group_means_]
        common = squared_distance(rows, self.mean_, self.whitener_)
        return like(features, torch.stack(own).amin(0) - common)


class NearestNeighbours(Learned):
    """Distance to the k-th nearest familiar features, all scaled to length 1.

    Sun et al. 2022 (arXiv:2204.06507). Nothing is assumed of how familiar features are spread.
    """

    LEARNED = ("bank_", "k_")
    bank_: Float64[Tensor, "m d"]
    k_: Int[Tensor, ""]

    def __init__(self, *, k: int = 10, bank_size: int = 5000, seed: int = 0) -> None:
        if not 1 <= k <= bank_size:
            raise ValueError(f"`k` must lie in [1, `bank_size`], got {k} and {bank_size}.")
        self.k, self.bank_size, self.seed = k, bank_size, seed

    def fit(self, features: Float[Array, "*n d"]) -> NearestNeighbours:
        """Keep familiar features, or an even draw of `bank_size` of them."""
        rows = flat_rows(features)
        if len(rows) < self.k:
            raise ValueError(f"`features` needs at least `k`={self.k} rows, got {len(rows)}.")
        if len(rows) > self.bank_size:
            rng = np.random.default_rng(self.seed)  # the same draw on every device
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
    """What is left of standardised features beyond the familiar principal components.

    The root mean square over the d features.
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
        """In standard deviations of a familiar feature."""
        rows = (self._rows(features) - self.mean_) / self.scale_
        residual = rows - rows @ self.components_.T @ self.components_
        return like(features, (residual**2).mean(-1).sqrt())


class PytorchOod:
    """A detector of pytorch-ood behind the same `fit` and `score`.

    Give it the detector alone, for example `PytorchOod(KNN(None, k=10))`: its `fit_features` and
    `predict_features` are called with float32. It is kept by whoever made it, so there is no
    `arrays`.
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
        """Learn from familiar features and, where the detector asks for classes, `groups`."""
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
    """The same numbers as a float64 tensor; refused if another detector's, or not finite."""
    if features.shape[-1] != num_features:
        raise ValueError(
            f"`features` must have {num_features} numbers per row, got {features.shape[-1]}."
        )
    rows = tensor(features).double()
    if not rows.isfinite().all():
        raise ValueError("`features` holds NaN or infinite numbers.")
    return rows


def flat_rows(features: Float[Array, "*n d"]) -> Float64[Tensor, "rows d"]:
    """All features as rows, checked for a fit."""
    rows = require_features(features, features.shape[-1]).reshape(-1, features.shape[-1])
    if len(rows) < 2:
        raise ValueError(f"`features` needs at least 2 rows, got {len(rows)}.")
    return rows


def group_index(groups: Int[Array, "*n"], rows: Float64[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
    """The group of every row, counted from 0 without gaps."""
    labels = tensor(groups).to(rows.device).ravel()
    if len(labels) != len(rows):
        raise ValueError(
            f"`groups` must name the group of every row, got {len(labels)} for {len(rows)} rows."
        )
    return torch.unique(labels, return_inverse=True)[1]


def tensor(values: Array) -> Tensor:
    """A tensor as it is; an array copied, for torch takes neither read-only nor reversed ones."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C"))


def like(features: Array, scores: Tensor) -> Array:
    """Scores as what the features were: an array or a tensor."""
    return scores if isinstance(features, Tensor) else scores.numpy()


def batched_whitening(
    rows: Float64[Tensor, "*place n d"],
) -> tuple[Float64[Tensor, "*place d"], Float64[Tensor, "*place d d"]]:
    """`gaussian.fit_whitening` in torch, for each place on its own."""
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
    """Standard deviation of each feature; 1 for one that never varies, which keeps its unit."""
    varies = rows.amax(-2) > rows.amin(-2)
    return torch.where(varies, rows.std(-2, correction=0), 1.0)


def squared_distance(
    rows: Float64[Tensor, "*any d"],
    mean: Float64[Tensor, "*some d"],
    whitener: Float64[Tensor, "*place d d"],
) -> Float64[Tensor, "*any"]:
    """Of rows to a mean once whitened, divided by the number of features."""
    return (((rows - mean) @ whitener.mT) ** 2).mean(-1)


def unit_length(rows: Float64[Tensor, "*n d"]) -> Float64[Tensor, "*n d"]:
    """Rows scaled to length 1; a row of zeros stays."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)
