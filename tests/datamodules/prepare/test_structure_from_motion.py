import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.photos import Photos
from datamodules.prepare import structure_from_motion as sfm
from datamodules.prepare.structure_from_motion import Settings, structure_from_motion
from datamodules.sparse_points import similarity_between
from ops.cameras import look_at, pixel_centers, pixel_rays

pytest.importorskip("pycolmap")

ROOT = Path(__file__).parents[3]
SIZE, FOCAL, NUM_VIEWS = 192, 230.0, 5
CORNER, TARGET, UP = torch.tensor([-1.0, -1, -1]), torch.tensor([-0.3, -0.3, -0.4]), torch.tensor([0, 0, 1.0])


@functools.cache
def photographed_corner() -> tuple[list[np.ndarray], np.ndarray]:
    """Photographs of the corner of a room whose walls are painted with blurred noise, and where they were taken."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(1, 9, n, n, generator=generator) for n in (12, 40, 90)]
    walls = sum(torch.nn.functional.interpolate(layer, (400, 400), mode="bicubic") for layer in noise) / 3
    intrinsics = torch.tensor([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    images, positions = [], []
    for view in range(NUM_VIEWS):
        turn = torch.tensor(0.18 * (view - 2))
        position = torch.stack([1.6 + 0.8 * turn, 1.6 - 0.8 * turn, 1.3 + 0.4 * turn.square()])
        pose = look_at(position, TARGET, UP)
        origins, directions = pixel_rays(pixel_centers(SIZE, SIZE), intrinsics, pose)
        distances = (CORNER - origins) / directions
        wall = distances.where(distances > 0, torch.inf).argmin(-1)
        points = origins + distances.gather(1, wall[:, None]) * directions
        image = torch.zeros(len(points), 3)
        for axis in range(3):
            on_wall = points[wall == axis][:, [k for k in range(3) if k != axis]] / 2
            texture = walls[:, 3 * axis : 3 * axis + 3]
            image[wall == axis] = torch.nn.functional.grid_sample(texture, on_wall[None, None])[0, :, 0].T
        images.append((image.view(SIZE, SIZE, 3).clamp(0, 1) * 255).round().byte().numpy())
        positions.append(position.numpy())
    return images, np.array(positions)


def write_corner(folder: Path, **options: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view, image in enumerate(photographed_corner()[0]):
        Image.fromarray(image).save(folder / f"{view}.png", **options)


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose structure from motion has been done."""
    root = tmp_path_factory.mktemp("corner")
    write_corner(root)
    Photos(str(root), num_threads=1).prepare_data()
    return root


def assert_cameras_are_those_of_the_corner(root: Path, **arguments: object) -> None:
    scene = Photos(str(root), normalization="none", **arguments).load_scene()
    assert scene.image_names == [f"{view}.png" for view in range(NUM_VIEWS)]
    found = scene.camera_to_world[:, :3, 3].double().numpy()
    truth = photographed_corner()[1]
    matrix = similarity_between(found, truth)
    assert np.linalg.norm(found @ matrix[:3, :3].T + matrix[:3, 3] - truth, axis=1).max() < 0.05
    assert scene.intrinsics[0, 0, 0] == pytest.approx(FOCAL, rel=0.05)
    points = scene.sparse_points.points.numpy() if scene.sparse_points is not None else np.zeros((0, 3))
    to_wall = np.abs(points @ matrix[:3, :3].T + matrix[:3, 3] + 1).min(axis=1) if len(points) else np.zeros(1)
    assert np.median(to_wall) < 0.05


def test_bare_photographs_get_the_cameras_they_were_taken_with(reconstructed: Path) -> None:
    assert_cameras_are_those_of_the_corner(reconstructed)
    remembered = json.loads((reconstructed / "structure_from_motion/registered.json").read_text())
    assert remembered["registered"] == [f"{view}.png" for view in range(NUM_VIEWS)]
    assert remembered["missing"] == []


def test_a_second_run_is_instant_and_touches_nothing(
    reconstructed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sfm, "needs_pycolmap", lambda what: pytest.fail("nothing should be computed"))
    monkeypatch.setattr(sys, "argv", ["structure_from_motion", "--root", str(reconstructed)])
    sfm.main()
    assert "is of these 5 photographs already: 5 registered" in capsys.readouterr().out


def test_a_new_photograph_is_added_to_what_is_known_and_a_changed_one_starts_anew(
    reconstructed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reconstructed, tmp_path / "corner")
    Image.fromarray(np.full((SIZE, SIZE, 3), 99, np.uint8)).save(tmp_path / "corner/9.png")
    structure_from_motion(tmp_path / "corner", tmp_path / "corner/structure_from_motion", Settings(num_threads=1))
    output = capsys.readouterr().out
    assert "features of 5 photographs are there already" in output
    assert "features of 1 of 1 photographs" in output
    assert "5 of 6 photographs registered" in output
    assert "not registered and left out: 9.png" in output
    (tmp_path / "corner/9.png").unlink()
    os.utime(tmp_path / "corner/3.png")
    for view in (0, 1, 2, 4):  # so that anew is quick
        (tmp_path / f"corner/{view}.png").unlink()
    with pytest.raises(ValueError, match="holds 1 photographs"):
        structure_from_motion(tmp_path / "corner", tmp_path / "corner/structure_from_motion")
    sfm._forget_changed(tmp_path / "corner/structure_from_motion", {"3.png": [1, 1]})
    assert "starting anew" in capsys.readouterr().out
    assert not (tmp_path / "corner/structure_from_motion/database.db").exists()


def test_a_run_that_was_killed_keeps_its_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corner(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "datamodules.prepare.structure_from_motion", "--root", tmp_path, "--num_threads", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if "features of 4 of 5" in line or "features of 5 of 5" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "structure_from_motion/sparse").exists()
    start = time.monotonic()
    Photos(str(tmp_path), num_threads=1).prepare_data()
    assert time.monotonic() - start < 60
    output = capsys.readouterr().out
    assert "features of 4 photographs are there already" in output or "features of 5 photographs are" in output
    assert_cameras_are_those_of_the_corner(tmp_path)


def test_photographs_turned_by_exif_are_worked_on_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "images").mkdir()
    for view, image in enumerate(photographed_corner()[0]):
        turned = {"exif": exif} if view % 2 else {}
        Image.fromarray(image[::-1, ::-1] if view % 2 else image).save(tmp_path / f"images/{view}.png", **turned)
    output = tmp_path / "elsewhere"
    Photos(str(tmp_path), sfm_folder=str(output), num_threads=1).prepare_data()
    assert not (tmp_path / "structure_from_motion").exists()
    assert_cameras_are_those_of_the_corner(tmp_path, sfm_folder=str(output))
    scene = Photos(str(tmp_path), sfm_folder=str(output), normalization="none").load_scene()
    for view in (0, 1):  # coarsely, since the lens was estimated and cut the picture
        loaded, upright = (coarse(image) for image in (scene.images[view].numpy(), photographed_corner()[0][view]))
        assert (loaded - upright).abs().mean() < 0.3 * (loaded - upright.flip(-1, -2)).abs().mean()


def coarse(image: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), 8)


def test_known_cameras_without_points_get_points_that_no_held_out_view_saw(tmp_path: Path) -> None:
    write_corner(tmp_path / "images")
    _, positions = photographed_corner()
    frames = []
    for view, position in enumerate(torch.from_numpy(positions)):
        pose = look_at(position, TARGET, UP).double().numpy() @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"images/{view}.png", "transform_matrix": pose.tolist()})
    content = {"fl_x": FOCAL, "sphere_center": [-0.5, -0.5, -0.5], "sphere_radius": 2.0, "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    data = Photos(str(tmp_path), reads={"rays", "sparse_points"}, held_out=[4])
    data.prepare_data()
    data.setup()
    points = data.scene.sparse_points
    on_wall = (points.points * 2 - 0.5 + 1).abs().amin(-1)
    assert len(points.points) > 30
    assert on_wall.median() < 0.02
    assert points.view_offsets[5] == points.view_offsets[4] > points.view_offsets[3]


def test_photographs_that_share_nothing_are_refused_with_advice(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for view in range(4):
        noise = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((128, 128)).save(tmp_path / f"{view}.png")
    with pytest.raises(ValueError, match="none of the 4 photographs could be placed: no 3 of them share enough feat"):
        structure_from_motion(tmp_path, tmp_path / "out", Settings(num_threads=1))


def test_a_truncated_photograph_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    write_corner(tmp_path)
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"2.png cannot be read as an image"):
        structure_from_motion(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/database.db").exists()


def test_a_folder_that_cannot_be_written_asks_for_another(tmp_path: Path) -> None:
    write_corner(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write into .*; name another folder for it: sfm_folder, or --output"):
        structure_from_motion(tmp_path, tmp_path / "file/out")


def test_many_photographs_are_matched_in_order_with_their_neighbours_and_some_further_on() -> None:
    names = [f"{k}.png" for k in range(200)]
    pairs = set(Settings().pairs(names))
    assert len(pairs) < 200 * 14
    assert all((names[k], names[k + step]) in pairs for k in range(190) for step in range(1, 9))
    assert ("0.png", "128.png") in pairs
    assert len(set(Settings().pairs(names[:50]))) == 50 * 49 / 2
    assert len(set(Settings(matching="exhaustive").pairs(names))) == 200 * 199 / 2
    assert set(Settings(matching="sequential").pairs(names[:3])) == {
        ("0.png", "1.png"), ("0.png", "2.png"), ("1.png", "2.png"),
    }  # fmt: skip
