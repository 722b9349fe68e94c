"""The ablation of Neuralangelo's supervision measures with points that no cell was trained on."""

import numpy as np
import pytest
import torch

from benchmarks.supervision import CELLS, write_halves
from datamodules.sparse_points import read_tracks
from datamodules.tracks import Tracks, save_tracks
from methods.neuralangelo import Neuralangelo
from tests.datamodules.toy import make_scene


def test_halves_are_disjoint_and_together_all_points_with_their_views(tmp_path):
    generator = np.random.default_rng(0)
    to_dataset = torch.tensor([[50.0, 0, 0, 7], [0, 50, 0, 8], [0, 0, 50, 9], [0, 0, 0, 1]], dtype=torch.float64)
    scene = make_scene(normalized_to_dataset=to_dataset)
    entries = np.argwhere(generator.random((5, 31)) > 0.4)
    tracks = Tracks.from_entries(generator.normal(size=(31, 3)), generator.random(31), entries, 5)
    save_tracks(tmp_path / "all.npz", tracks, scene.image_names)
    whole = read_tracks(tmp_path / "all.npz", scene)
    halves = [read_tracks(path, scene) for path in write_halves(scene, tmp_path / "all.npz", tmp_path)]
    assert [len(half.points) for half in halves] == [15, 16]
    together = np.concatenate([half.points for half in halves])
    order, expected = np.lexsort(together.T), np.lexsort(whole.points.T)
    np.testing.assert_allclose(together[order], whole.points[expected])
    np.testing.assert_array_equal(np.concatenate([h.lengths for h in halves])[order], whole.lengths[expected])


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_reads_what_its_name_says(cell):
    with torch.device("meta"):
        reads = Neuralangelo(**CELLS[cell]).reads
    keys = {"mask": "ray_masks", "sparse": "sparse_points", "patch": "source_images"}
    assert reads == {"rays"} | {keys[name] for name in cell.split("+") if name in keys}
