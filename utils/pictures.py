"""Frames as a JPEG for pages."""

import cv2
import numpy as np

QUALITY = 82


def jpeg_strip(frames: np.ndarray, height: int) -> bytes:
    """Frames RGB uint8 (F, H, W, 3), scaled to `height` pixels and side by side, as a JPEG."""
    tall, wide = frames.shape[1:3]
    size = (max(1, round(wide * height / tall)), height)
    method = cv2.INTER_AREA if tall > height else cv2.INTER_LINEAR
    strip = np.hstack([cv2.resize(frame, size, interpolation=method) for frame in frames])
    _, data = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
