"""What tests of annotations share: videos that nobody opens, and what is said of a split."""

import pytest

from datasets.annotations import load_split
from utils.errors import InputError


def failure(dataset, split, data_dir, videos_dir, **options):
    """The one line that load_split says."""
    with pytest.raises(InputError) as caught:
        load_split(dataset, split, data_dir, videos_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def touch_videos(folder, names, suffix=".mp4"):
    """Files with the names of videos: reading annotations opens none."""
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder
