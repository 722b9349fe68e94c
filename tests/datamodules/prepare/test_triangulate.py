import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.dtu import DTU
from datamodules.prepare import triangulate
from datamodules.prepare.neus_layout import write_neus_layout
from datamodules.scene import Scene
from ops.cameras import look_at, pixel_centers, pixel_rays

SIZE = 200
NORMALIZED_TO_DATASET = torch.tensor(
    [[80.0, 0, 0, 15], [0, 80, 0, -30], [0, 0, 80, 500], [0, 0, 0, 1]], dtype=torch.float64
)


def photographed_plane(num_views: int = 5) -> Scene:
    """Photographs of the plane z = 0, painted with blurred noise."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(1, 3, n, n, generator=generator) for n in (12, 40, 90)]
    texture = sum(torch.nn.functional.interpolate(layer, (512, 512), mode="bicubic") for layer in noise) / 3
    intrinsics = torch.tensor([[1.5 * SIZE, 0, SIZE / 2 + 7], [0, 1.5 * SIZE, SIZE / 2 - 4], [0, 0, 1]])
    images, poses = [], []
    for view in range(num_views):
        turn = torch.tensor(0.35 * view)
        pose = look_at(
            torch.stack([0.9 * turn.cos(), 0.9 * turn.sin(), torch.tensor(2.3)]),
            torch.zeros(3),
            torch.tensor([0, 1.0, 0]),
        )
        origins, directions = pixel_rays(pixel_centers(SIZE, SIZE), intrinsics, pose)
        on_plane = (origins - origins[:, 2:] / directions[:, 2:] * directions)[:, :2].reshape(1, SIZE, SIZE, 2)
        image = torch.nn.functional.grid_sample(texture, on_plane, align_corners=False)[0]
        images.append((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))
        poses.append(pose)
    return Scene(
        name="plane",
        category="test",
        images=torch.stack(images),
        intrinsics=intrinsics.repeat(num_views, 1, 1),
        camera_to_world=torch.stack(poses),
        normalized_to_dataset=NORMALIZED_TO_DATASET,
        image_names=[f"{view:06d}.png" for view in range(num_views)],
    )


def test_triangulated_points_of_a_painted_plane_lie_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    write_neus_layout(photographed_plane(), tmp_path / "scan3")
    monkeypatch.setattr(sys, "argv", ["triangulate", "--root", str(tmp_path), "--scan", "3"])
    triangulate.main()
    output = capsys.readouterr().out
    assert "matching every pair" in output
    assert "wrote" in output
    written = tmp_path / "scan3" / "sparse_points.npz"
    with np.load(written, allow_pickle=False) as file:
        points, errors, lengths = file["points"], file["errors"], file["track_lengths"]
        assert str(file["frame"]) == "dataset"
    good = (lengths >= 3) & (errors <= 1)
    assert good.sum() > 100
    assert np.median(errors[good]) < 0.5
    height_mm = np.abs(points[good][:, 2] - 500)
    assert np.median(height_mm) < 0.15  # a pixel is 0.6 mm wide there
    assert np.quantile(height_mm, 0.95) < 1.0
    assert np.ptp(points[good][:, 0]) > 50

    triangulate.main()
    assert "is there already" in capsys.readouterr().out

    data = DTU(str(tmp_path), 3, reads={"rays", "sparse_points"}, rays_per_batch=16)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert len(batch["sparse_points"]) > 50
    assert batch["sparse_points"][:, 2].abs().median() < 0.15 / 80


def test_a_scan_without_points_says_how_to_get_them(tmp_path: Path) -> None:
    write_neus_layout(photographed_plane(3), tmp_path / "scan3")
    with pytest.raises(ValueError, match="N reads 'sparse_points', which scan3 does not have; triangulate some with"):
        DTU(str(tmp_path), 3, reads={"rays", "sparse_points"}, reader="N").setup()
    with pytest.raises(ValueError, match=r"there are no sparse points at .*nowhere"):
        DTU(str(tmp_path), 3, sparse_points=str(tmp_path / "nowhere"), reads={"rays", "sparse_points"}).setup()


def test_photographs_of_nothing_leave_nothing_to_triangulate(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    scene = photographed_plane(3)
    scene.images.fill_(128)
    write_neus_layout(scene, tmp_path / "scan3")
    with pytest.raises(ValueError, match="scan3: no point could be triangulated"):
        triangulate.triangulate(triangulate.read_scan(tmp_path / "scan3"), tmp_path / "scan3" / "image")
