"""Which way a score is better, by its name: tables that compare say it and mark the best."""

import re

HIGHER = r"psnr|ssim|iou|f_score|precision|recall|normal_consistency|within_\d"
LOWER = (
    r"accuracy|completeness|overall|chamfer|earth_movers|emd|lpips|cross_entropy|sparse_points_(median|mean|p\d+)|loss"
    r"|distance|error"
)


def higher_is_better(score: str) -> bool | None:
    """Whether more is better; ``None`` where the name does not tell. ``accuracy`` is a distance: less is better.

    Args:
        score: name of a column of ``objects.csv``, or of a logged value with ``train/`` or ``val/`` before it.
    """
    name = score.rsplit("/", 1)[-1]
    # a threshold that was chosen, or a count, is no score
    if re.search(r"threshold$|^num_|_count$", name):
        return None
    if re.search(HIGHER, name):
        return True
    return False if re.search(LOWER, name) else None


def unit_in_name(score: str) -> str:
    """The unit that ends a score's name (mm, dB), or nothing; shares and the dataset's own unit are not in names."""
    return {"mm": "mm", "db": "dB"}.get(score.rsplit("_", 1)[-1], "")
