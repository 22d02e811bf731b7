"""What the vision tower makes of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def image_features(
    model: Any, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor
) -> torch.Tensor:
    """Vision features of images, [visual tokens of all, width], image after image.

    Parameters
    ----------
    model
        A Qwen2.5-VL model.
    pixel_values, image_grid_thw
        The images, as the processor gives them.
    """
    import torch

    found = model.get_image_features(pixel_values, image_grid_thw, return_dict=True)
    return torch.cat(tuple(found.pooler_output))
