"""Augmentation moves pixels where it says, leaves black outside, and is off where nothing is asked."""

from __future__ import annotations

import pytest
import torch

from trainables.workloads.augment import Augment


def images(channels: int = 1, height: int = 8, width: int = 8) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(3, channels, height, width, generator=random, dtype=torch.float64)


def draws(**values: float) -> torch.Tensor:
    """Draws in the middle of their ranges but for those named."""
    names = ["rotate", "down", "right", "flip", "brightness", "contrast", "saturation"]
    row = torch.full((3, 7), 0.5, dtype=torch.float64)
    for name, value in values.items():
        row[:, names.index(name)] = value
    return row


@pytest.mark.parametrize("channels", [1, 3])
def test_the_middle_of_every_range_changes_nothing(channels: int) -> None:
    augment = Augment(rotate=30, translate=0.2, jitter=0.4, flip=True)
    x = images(channels)
    torch.testing.assert_close(augment(x, draws()), x)


def test_a_quarter_turn_is_rot90() -> None:
    x = images()
    quarter = Augment(rotate=90)
    found = quarter(x, draws(rotate=1.0))
    assert torch.allclose(found, torch.rot90(x, 1, (2, 3))) or torch.allclose(found, torch.rot90(x, 3, (2, 3)))
    torch.testing.assert_close(quarter(found, draws(rotate=0.0)), x)


def test_a_shift_moves_pixels_and_brings_in_black() -> None:
    x = images(height=8, width=4)
    raw = x * 0.5 + 0.25  # as if x had been standardised with these
    augment = Augment(translate=0.25, mean=(0.25,), std=(0.5,))
    down = augment(x, draws(down=0.0)) * 0.5 + 0.25
    torch.testing.assert_close(down[:, :, 2:], raw[:, :, :-2])
    assert float(down[:, :, :2].abs().max()) < 1e-12
    right = augment(x, draws(right=0.0)) * 0.5 + 0.25
    torch.testing.assert_close(right[:, :, :, 1:], raw[:, :, :, :-1])


def test_half_of_the_images_are_mirrored() -> None:
    x = images()
    torch.testing.assert_close(Augment(flip=True)(x, draws(flip=0.2)), x.flip(3))
    torch.testing.assert_close(Augment(flip=True)(x, draws(flip=0.8)), x)
    torch.testing.assert_close(Augment(rotate=1)(x, draws(flip=0.2)), x)


def test_jitter_blends_with_black_mean_and_grey() -> None:
    x, augment = images(3) / 2, Augment(jitter=0.5)
    torch.testing.assert_close(augment(x, draws(brightness=1.0)), x * 1.5)
    flat = augment(x, draws(contrast=0.0))
    grey = (x * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(flat, (x + grey.mean((2, 3), keepdim=True)) / 2)
    torch.testing.assert_close(augment(x, draws(saturation=0.0)), (x + grey) / 2)
    one = images(1) / 2
    torch.testing.assert_close(augment(one, draws(saturation=0.0)), one)


def test_every_example_has_its_own_draw_and_a_seed_gives_it_again() -> None:
    assert torch.equal(Augment.draw(5, 10), Augment.draw(5, 10))
    assert not torch.equal(Augment.draw(5, 10), Augment.draw(6, 10))
    assert len(Augment.draw(5, 10).unique(dim=0)) == 10
    x = images()[:1].expand(4, -1, -1, -1)
    found = Augment(rotate=40)(x, Augment.draw(0, 4).double())
    assert len(found.flatten(1).unique(dim=0)) == 4
