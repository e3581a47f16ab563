"""Random changes of training images, drawn for each example, the same for lanes with the same seed.

Rotation, translation and flip are one affine map of pixel positions; brightness, contrast and saturation are blends.
The numbers drawn for an example depend on the lane's seed, the epoch and the example alone, not on the device or on
other lanes, so a resumed trial sees the same images.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import Augmentation

# Weights of red, green and blue in luminance (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment(Augmentation):
    """Applies random changes to training images.

    Attributes:
        mean, std: of each channel, by which the images were standardised; pixels from outside the image are black.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, changes: Augmentation, mean: tuple[float, ...], std: tuple[float, ...]) -> Augment | None:
        """The changes of images that were standardised by mean and std; None if there are none."""
        return cls(**asdict(changes), mean=mean, std=std) if changes else None

    @staticmethod
    def draw(seed: int, count: int) -> Tensor:
        """Uniform numbers in [0, 1) for `count` examples, (count, 7), on the CPU."""
        return torch.rand(count, 7, generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change images, (n, channels, height, width), by their draws, (n, 7)."""
        angle, down, right, mirror, *colour = draws.T
        mean, std = (_per_channel(images, each) for each in (self.mean, self.std))
        raw = images * std + mean
        if self.rotate or self.translate or self.flip:
            height, width = images.shape[2:]
            turn = (2 * angle - 1) * math.radians(self.rotate or 0.0)
            sign = torch.where(mirror < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(mirror)
            cos, sin = turn.cos(), turn.sin()
            # Positions run from -1 to 1 on both axes: a shift by the height is 2, and a rotation must not shear.
            x, y = ((2 * each - 1) * 2 * (self.translate or 0.0) for each in (right, down))
            first = torch.stack([sign * cos, -sign * sin * (height / width), sign * x], 1)
            second = torch.stack([sin * (width / height), cos, y], 1)
            places = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
            raw = F.grid_sample(raw, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.jitter:
            brightness, contrast, saturation = (
                (1 + self.jitter * (2 * each - 1))[:, None, None, None] for each in colour
            )
            raw = raw * brightness
            grey = self._grey(raw).mean((1, 2, 3), keepdim=True)
            raw = grey + (raw - grey) * contrast
            if images.shape[1] == 3:
                grey = self._grey(raw)
                raw = grey + (raw - grey) * saturation
            raw = raw.clamp(0, 1)
        return (raw - mean) / std

    @staticmethod
    def _grey(raw: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, 1, height, width)."""
        channels = raw.shape[1]
        weights = LUMA if channels == 3 else (1 / channels,) * channels
        return (raw * _per_channel(raw, weights)).sum(1, keepdim=True)


def _per_channel(images: Tensor, values: tuple[float, ...]) -> Tensor:
    """(channels, 1, 1), filled on the device: a CUDA graph may not copy from the host."""
    return torch.stack([images.new_full((1, 1), value) for value in values])
