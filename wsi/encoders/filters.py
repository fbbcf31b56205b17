"""The filters behind the texture encoder, on image batches (B, K, h, w)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

GABOR_ORIENTATIONS = 4
GABOR_WAVELENGTH_PX = 4.0
_GABOR_SIGMA_PX = 1.8
_GABOR_RADIUS_PX = 4
_PEAK_PX = 5
_FLAT = 1e-4  # variance below which an image counts as flat


def halve(image: Tensor) -> Tensor:
    """Return `image` at half the size: each pixel the mean of 2x2; an odd last row is dropped."""
    return functional.avg_pool2d(image, 2)


def lost_detail(image: Tensor, halved: Tensor) -> Tensor:
    """Return the root mean square of what halving `image` (B, K, h, w) took away, (B, K)."""
    back = halved.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    rest = image[..., : back.shape[-2], : back.shape[-1]] - back
    return rest.square().mean(dim=(2, 3)).sqrt()


def gabor_bank() -> Tensor:
    """Return complex Gabor filters as (2 * orientations, 1, k, k): all even ones, then all odd.

    Orientation o responds to stripes whose intensity varies along the angle o * 45 degrees, with
    a period of `GABOR_WAVELENGTH_PX`. Even filters have no response to a constant image. Energies
    are normalised so that a stripe of amplitude 1 in tune gives about 1.
    """
    axis = torch.arange(-_GABOR_RADIUS_PX, _GABOR_RADIUS_PX + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * _GABOR_SIGMA_PX**2))
    window /= window.sum()
    even, odd = [], []
    for o in range(GABOR_ORIENTATIONS):
        angle = o * math.pi / GABOR_ORIENTATIONS
        phase = 2 * math.pi / GABOR_WAVELENGTH_PX * (x * math.cos(angle) + y * math.sin(angle))
        wave = window * torch.cos(phase)
        even.append(2 * (wave - window * wave.sum()))
        odd.append(2 * window * torch.sin(phase))
    return torch.stack(even + odd)[:, None].float()


def gabor_energy(image: Tensor, bank: Tensor) -> Tensor:
    """Return the mean magnitude of `image` (B, K, h, w) in each orientation, (B, K, o)."""
    b, k, h, w = image.shape
    padded = functional.pad(image.reshape(b * k, 1, h, w), [_GABOR_RADIUS_PX] * 4, mode="replicate")
    even, odd = functional.conv2d(padded, bank).chunk(2, dim=1)
    return torch.sqrt(even.square() + odd.square()).mean(dim=(2, 3)).reshape(b, k, -1)


def blur(image: Tensor, sigma_px: float) -> Tensor:
    """Return `image` (B, 1, h, w) under a Gaussian of `sigma_px`, edges replicated."""
    radius = math.ceil(3 * sigma_px)
    axis = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    weights = torch.exp(-(axis**2) / (2 * sigma_px**2))
    weights = weights / weights.sum()
    padded = functional.pad(image, [radius] * 4, mode="replicate")
    return functional.conv2d(
        functional.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1)
    )


def peak_strength(response: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return density and mean strength of the peaks of `response` (B, 1, h, w), each (B,).

    A peak is the largest pixel of its 5x5 neighbourhood. It counts by how far it rises above
    `floor`, from 0 at the floor to 1 at twice the floor: no threshold where a rounding error of
    the last bit could turn a whole peak on or off. Density is peaks per 1,000 pixels.
    """
    pad = _PEAK_PX // 2
    highest = functional.max_pool2d(response, (1, _PEAK_PX), 1, (0, pad))
    highest = functional.max_pool2d(highest, (_PEAK_PX, 1), 1, (pad, 0))
    weight = (response / floor - 1).clamp(0, 1) * (response == highest)
    total = weight.sum(dim=(1, 2, 3))
    strength = (weight * response).sum(dim=(1, 2, 3)) / (total + 1.0)
    return total / response[0].numel() * 1000, strength


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard deviation and skewness of `values` (B, K, n), each (B, K).

    A small constant beside the variance makes the skewness of a flat image 0, not noise.
    """
    mean = values.mean(-1, keepdim=True)
    centred = values - mean
    square = centred.square()
    variance = square.mean(-1)
    skewness = (square * centred).mean(-1) / (variance + _FLAT) ** 1.5
    return mean.squeeze(-1), variance.sqrt(), skewness


def quantiles(values: Tensor, fractions: tuple[float, ...]) -> Tensor:
    """Return the values (B, K, n) at rank `fraction * (n - 1)`, rounded down, as (B, K * q)."""
    ordered = values.sort(dim=-1).values
    ranks = [int(fraction * (values.shape[-1] - 1)) for fraction in fractions]
    return ordered[..., ranks].flatten(1)


def autocorrelation(image: Tensor, step: int) -> Tensor:
    """Return how alike pixels `step` apart are, over rows and columns, (B, K) in [-1, 1]."""
    centred = image - image.mean(dim=(2, 3), keepdim=True)
    variance = centred.square().mean(dim=(2, 3))
    across = (centred[..., step:] * centred[..., :-step]).mean(dim=(2, 3))
    down = (centred[..., step:, :] * centred[..., :-step, :]).mean(dim=(2, 3))
    return (across + down) / 2 / (variance + _FLAT)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of two images (B, 1, h, w), (B, 1); near 0 where one is flat."""
    a = first - first.mean(dim=(2, 3), keepdim=True)
    b = second - second.mean(dim=(2, 3), keepdim=True)
    spread = (a.square().mean(dim=(2, 3)) + _FLAT) * (b.square().mean(dim=(2, 3)) + _FLAT)
    return (a * b).mean(dim=(2, 3)) / spread.sqrt()
