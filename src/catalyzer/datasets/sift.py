"""SIFT as the datasets of photographs use it: OpenCV's descriptors as BigANN stores them."""

from typing import Any

import numpy as np


def sift(grey: np.ndarray, **detector: float) -> np.ndarray:
    """The SIFT descriptors of an image, in OpenCV's order of keypoints.

    Args:
        grey: `(height, width)` uint8.
        detector: what `cv2.SIFT_create` takes, such as `contrastThreshold`.

    Returns:
        `(n, 128)` uint8; n is 0 where nothing stands out.

    >>> sift(np.zeros((40, 40), np.uint8)).shape
    (0, 128)
    """
    import cv2

    create: Any = cv2.SIFT_create  # type: ignore[attr-defined]
    descriptors = create(**detector).detectAndCompute(grey, None)[1]
    return np.empty((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8)
