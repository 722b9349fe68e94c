"""Every score of the project says which way it is better."""

import pytest

from metrics.directions import higher_is_better, unit_in_name
from metrics.images import ViewScore
from metrics.omniobject3d import OmniObject3DScore
from metrics.points import EarthMovers
from metrics.sparse import SparsePointScore
from metrics.surface import SurfaceScore
from metrics.tanks_and_temples import TanksAndTemplesScore
from metrics.volume import VolumeIoU, VoxelIoU

KNOWN = {
    True: [
        "psnr_db", "psnr_masked_db", "ssim", "f_score_1pct", "precision_0_5pct", "recall_2pct", "normal_consistency",
        "voxel_iou_0_5", "voxel_iou_chosen", "volume_iou", "sparse_points_within_1pct", "tanks_precision", "val/iou",
    ],
    False: [
        "accuracy", "completeness", "chamfer_l1", "dtu_none_overall_mm", "dtu_neus_accuracy_mm", "lpips_vgg",
        "earth_movers_1024", "sparse_points_median", "sparse_points_p90", "omniobject3d_chamfer", "train/loss",
        "voxel_cross_entropy",
    ],
    None: ["size", "voxel_iou_chosen_threshold", "num_empty", "train/num_views"],
}  # fmt: skip


@pytest.mark.parametrize(("direction", "name"), [(d, name) for d, names in KNOWN.items() for name in names])
def test_a_score_is_better_the_way_its_name_says(direction: bool | None, name: str) -> None:
    assert higher_is_better(name) is direction


def test_no_score_of_a_protocol_is_without_a_direction() -> None:
    metrics = [ViewScore(), SurfaceScore(), VolumeIoU(), VoxelIoU(), EarthMovers()]
    columns = [column for metric in metrics for column in metric.columns]
    columns += [*OmniObject3DScore.columns, *SparsePointScore.columns, *TanksAndTemplesScore.columns]
    assert [c for c in columns if higher_is_better(c) is None] == ["voxel_iou_chosen_threshold"]


def test_units_in_names() -> None:
    assert [unit_in_name(name) for name in ("psnr_db", "dtu_none_overall_mm", "ssim")] == ["dB", "mm", ""]
