"""Points that a structure-from-motion program triangulated, and which photographs saw them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Tracks:
    """Triangulated points as a structure-from-motion program leaves them.

    Attributes:
        points: (P, 3) float64, in whatever frame.
        errors: (P,) mean reprojection error, pixels; NaN where it is not known.
        view_offsets: (V + 1,) int64.
        view_point_index: (K,) int64; photograph v saw points ``view_point_index[view_offsets[v]:view_offsets[v + 1]]``.
    """

    points: np.ndarray
    errors: np.ndarray
    view_offsets: np.ndarray
    view_point_index: np.ndarray

    @property
    def entry_views(self) -> np.ndarray:
        """(K,) which photograph each entry of ``view_point_index`` belongs to."""
        return np.repeat(np.arange(len(self.view_offsets) - 1), np.diff(self.view_offsets))

    @property
    def lengths(self) -> np.ndarray:
        """(P,) how many photographs saw each point."""
        return np.bincount(self.view_point_index, minlength=len(self.points))

    def select(self, keep: np.ndarray) -> "Tracks":
        """Those points for which ``keep``, (P,) bool, holds."""
        entries = keep[self.view_point_index]
        counts = np.bincount(self.entry_views[entries], minlength=len(self.view_offsets) - 1)
        new_index = np.cumsum(keep) - 1
        return Tracks(
            self.points[keep],
            self.errors[keep],
            np.concatenate([[0], np.cumsum(counts)]),
            new_index[self.view_point_index[entries]],
        )

    @staticmethod
    def from_entries(points: np.ndarray, errors: np.ndarray, entries: np.ndarray, num_views: int) -> "Tracks":
        """From (K, 2) pairs of a photograph and a point that it saw; a pair counts once."""
        entries = np.unique(entries.reshape(-1, 2), axis=0)
        counts = np.bincount(entries[:, 0], minlength=num_views)
        return Tracks(points, errors, np.concatenate([[0], np.cumsum(counts)]), entries[:, 1])


def save_tracks(path: Path, tracks: Tracks, image_names: list[str]) -> None:
    """Write points of a scene in the dataset's frame; ``read_tracks`` reads them back."""
    np.savez_compressed(
        path,
        points=tracks.points,
        frame=np.array("dataset"),
        errors=tracks.errors,
        track_lengths=tracks.lengths,
        view_offsets=tracks.view_offsets,
        view_point_index=tracks.view_point_index,
        image_names=np.array(image_names),
    )
