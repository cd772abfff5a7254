"""SIFT as the datasets of photographs use it: OpenCV's descriptors as BigANN stores them."""

from typing import Any

import numpy as np

from catalyzer.errors import MissingPackage


def opencv() -> Any:
    """The module cv2, which SIFT is taken from.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError:
        raise MissingPackage('SIFT descriptors need OpenCV: pip install "catalyzer[sift]"') from None
    return cv2


def sift(grey: np.ndarray, **detector: float) -> np.ndarray:
    """The SIFT descriptors of an image, in OpenCV's order of keypoints.

    Args:
        grey: `(height, width)` uint8 image.
        detector: arguments of `cv2.SIFT_create`, such as `contrastThreshold`.

    Returns:
        `(n, 128)` uint8; n is 0 if there are no keypoints.

    Raises:
        MissingPackage: OpenCV is not installed.

    >>> sift(np.zeros((40, 40), np.uint8)).shape
    (0, 128)
    """
    descriptors = opencv().SIFT_create(**detector).detectAndCompute(grey, None)[1]
    return np.empty((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8)
