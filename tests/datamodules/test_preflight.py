import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from datamodules.dtu import read_scan
from datamodules.optical_axes import Cameras
from datamodules.preflight import check_before_training, points_of
from datamodules.preflight_picture import CAMERA, HELD_OUT, INSIDE, OUTSIDE, SPHERE
from datamodules.scene import Scene, SparsePoints, check_scene
from ops.cameras import look_at, pixel_centers, pixel_rays, project
from tests.datamodules.toy import ToyData

HEIGHT, WIDTH, NUM_VIEWS, RADIUS = 48, 64, 12, 0.6
TO_DATASET = torch.tensor([[5.0, 0, 0, 70], [0, 5, 0, -8], [0, 0, 5, 2], [0, 0, 0, 1]], dtype=torch.float64)


def ball_scene(**changes: object) -> Scene:
    """A ball of radius 0.6 at the origin, its true masks, and points on it, seen from 12 cameras three units away."""
    turns = torch.arange(NUM_VIEWS) * (2 * torch.pi / NUM_VIEWS)
    positions = 3 * torch.stack([turns.cos(), turns.sin(), torch.full_like(turns, 0.4)], dim=-1)
    poses = torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for p in positions])
    intrinsics = torch.tensor([[80.0, 0, WIDTH / 2], [0, 80.0, HEIGHT / 2], [0, 0, 1]]).repeat(NUM_VIEWS, 1, 1)
    masks = []
    for pose in poses:
        origins, directions = pixel_rays(pixel_centers(HEIGHT, WIDTH), intrinsics[0], pose)
        closest = torch.linalg.cross(origins, directions).norm(dim=-1)
        masks.append((closest < RADIUS).reshape(HEIGHT, WIDTH).byte() * 255)
    fields = {
        "name": "ball",
        "category": "test",
        "images": torch.full((NUM_VIEWS, HEIGHT, WIDTH, 3), 90, dtype=torch.uint8),
        "intrinsics": intrinsics,
        "camera_to_world": poses,
        "normalized_to_dataset": TO_DATASET,
        "image_names": [f"{v}.png" for v in range(NUM_VIEWS)],
        "masks": torch.stack(masks),
        "sparse_points": ball_points(poses),
    }
    return Scene(**{**fields, **changes})


def ball_points(poses: Tensor, *others: Tensor) -> SparsePoints:
    """300 points on the ball, each seen from its side; ``others`` are known, but seen in no photograph."""
    points = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    seen = points @ poses[:, :3, 3].T > 1.0
    view, point = seen.T.nonzero().T
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(view, minlength=len(poses)).cumsum(0)])
    points = 0.98 * RADIUS * points
    return SparsePoints(points, offsets, point, torch.cat([points, *others]))


def read_as(scene: Scene, convention: str) -> Scene:
    """The scene as it would be read from poses of another convention, in the dataset's frame."""
    flip, to_dataset = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)), scene.normalized_to_dataset
    poses = to_dataset @ scene.camera_to_world.double()
    poses[:, :3, :3] /= to_dataset[0, 0]
    poses = poses @ flip if "opengl" in convention else poses
    poses = torch.linalg.inv(poses) if "inverse" in convention else poses
    poses[:, :3, 3] = (poses[:, :3, 3] - to_dataset[:3, 3]) / to_dataset[0, 0]
    return dataclasses.replace(scene, camera_to_world=poses.float())


def scaled(scene: Scene, factor: float) -> Scene:
    """The same in a sphere that is larger by a factor."""
    poses = scene.camera_to_world.clone()
    poses[:, :3, 3] /= factor
    sparse = dataclasses.replace(
        scene.sparse_points, points=scene.sparse_points.points / factor, all_points=scene.sparse_points.points / factor
    )
    return dataclasses.replace(scene, camera_to_world=poses, sparse_points=sparse)


def test_a_sound_scene_raises_no_doubt() -> None:
    facts = check_before_training(ball_scene(), None)
    assert facts.doubts == ()
    assert facts.views_meeting_sphere == 1
    assert facts.cameras_inside == 0
    assert facts.points_inside == facts.points_in_view == facts.points_on_masks == 1
    assert facts.mask_agreement == pytest.approx(1, abs=0.02)  # pixels of the edge
    assert facts.mask_rays_meeting_sphere == 1


def test_the_share_of_rays_is_the_area_of_the_spheres_image() -> None:
    # a camera straight above: the sphere's image is a disc of radius f tan(asin(1 / d))
    pose = look_at(torch.tensor([0.0, 0, 6]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    scene = ball_scene(camera_to_world=pose.repeat(NUM_VIEWS, 1, 1), sparse_points=None, masks=None)
    facts = check_before_training(scene, None)
    area = np.pi * (80 * np.tan(np.arcsin(1 / 6))) ** 2 / (HEIGHT * WIDTH)
    assert facts.rays_meeting_sphere == pytest.approx(area, rel=0.03)
    assert facts.points_inside is facts.mask_agreement is facts.mask_rays_meeting_sphere is None


def test_the_share_of_points_counts_those_that_were_dropped() -> None:
    far = torch.full((900, 3), 4.0)
    facts = check_before_training(ball_scene(sparse_points=ball_points(ball_scene().camera_to_world, far)), None)
    assert facts.points_inside == pytest.approx(300 / 1200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: read_as(dataclasses.replace(s, sparse_points=None), "opengl"),
            r"only 0.00% of the rays, in 0% of the 12 training .*OpenGL's axes.*100% of the pictures show .*, not 0%",
        ),
        (lambda s: read_as(s, "opengl"), "OpenGL's axes.*100% of the sparse points lie in a picture that they were se"),
        (lambda s: read_as(s, "inverse"), "are world to camera: invert each"),
        (lambda s: read_as(s, "opengl inverse"), "are world to camera with OpenGL's axes.*invert each and multiply"),
        (lambda s: read_as(dataclasses.replace(s, sparse_points=None), "inverse"), "world to camera: invert each"),
        (lambda s: scaled(s, 10.0), "100% of the cameras are inside the unit sphere.*set inside_out"),
        (
            lambda s: dataclasses.replace(s, masks=255 - s.masks),
            "0% of the sparse points in the sphere fall on .*white",
        ),
        (lambda s: scaled(s, 0.01), "0.00% of the sparse points lie in the unit sphere.*check the normalisation"),
    ],
    ids=[
        "opengl",
        "opengl, points",
        "inverse",
        "both",
        "inverse, no points",
        "inside",
        "inverted masks",
        "tiny sphere",
    ],
)
def test_hopeless_scenes_are_refused_with_what_to_do(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=rf"ball: nothing can be learnt here: .*{message}.*; see .*preflight\.png"):
        check_before_training(change(ball_scene()), tmp_path)
    assert (tmp_path / "preflight.png").is_file()  # it shows why


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda s: with_pose(s, [0, 1, 2], turned=True), "3 of 12 training photographs do not show the unit sphere"),
        (lambda s: with_pose(s, [0, 1, 2], factor=0.1), "25% of the cameras are inside.* set inside_out"),
        (lambda s: dataclasses.replace(s, inside_out=True), "inside_out, but only 0% of the cameras are inside"),
        (lambda s: dataclasses.replace(s, masks=s.masks.roll(10, 2)), "fall on only .*% of the masks; is each"),
        (
            lambda s: dataclasses.replace(scaled(s, 0.5), sparse_points=None),
            "only 6[789]% of the masks' rays meet the unit sphere, the object may be cut off",
        ),
        (lambda s: scaled(dataclasses.replace(s, masks=None), 0.15), r"only .*% of the rays meet the unit sphere"),
        (
            lambda s: dataclasses.replace(s, sparse_points=ball_points(s.camera_to_world, torch.full((9000, 3), 4.0))),
            "only 3.2% of the sparse points lie in the unit sphere",
        ),
    ],
    ids=["away", "inside", "not inside", "other masks", "cut", "small", "background"],
)  # fmt: skip
def test_what_is_doubtful_is_warned_of(change, doubt: str) -> None:
    scene = change(ball_scene())
    if scene.masks is None:
        scene = dataclasses.replace(scene, sparse_points=None)
    with pytest.warns(UserWarning, match=f"ball: .*{doubt}"):
        facts = check_before_training(scene, None)
    assert facts.doubts


def with_pose(scene: Scene, views: list[int], *, turned: bool = False, factor: float = 1.0) -> Scene:
    poses = scene.camera_to_world.clone()
    poses[views, :3, 3] *= factor
    if turned:
        poses[views, :3, :3] *= torch.tensor([-1.0, 1, -1])
    return dataclasses.replace(scene, camera_to_world=poses, sparse_points=None, masks=None)


def test_a_room_may_have_its_cameras_inside() -> None:
    scene = dataclasses.replace(scaled(ball_scene(masks=None), 10.0), inside_out=True)
    check_scene(scene)
    assert check_before_training(scene, None).doubts == ()
    assert check_before_training(scene, None).cameras_inside == 1
    with pytest.raises(ValueError, match=r"all 12 cameras are inside the unit sphere.*need inside_out"):
        check_scene(dataclasses.replace(scene, inside_out=False))


def test_looking_away_names_the_convention_at_once() -> None:
    with pytest.raises(ValueError, match=r"no ray of any photograph meets the unit sphere.*OpenGL's axes"):
        check_scene(read_as(ball_scene(), "opengl"))


def test_the_cloud_holds_cameras_sphere_and_points_in_the_datasets_frame(tmp_path: Path) -> None:
    poses = ball_scene().camera_to_world
    scene = ball_scene(sparse_points=ball_points(poses, torch.full((40, 3), 2.0)))
    check_before_training(scene, tmp_path, views=list(range(2, NUM_VIEWS)))
    cloud = trimesh.load(tmp_path / "preflight.ply")
    in_sphere = (np.asarray(cloud.vertices) - TO_DATASET[:3, 3].numpy()) / 5

    def of(color: tuple[int, int, int]) -> np.ndarray:
        return in_sphere[(np.asarray(cloud.colors)[:, :3] == color).all(axis=1)]

    np.testing.assert_allclose(np.linalg.norm(of(SPHERE), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(of(SPHERE).mean(axis=0), 0, atol=1e-3)
    assert len(of(INSIDE)) == 300
    np.testing.assert_allclose(of(OUTSIDE), 2, atol=1e-5)
    assert len(of(CAMERA)) == 5 * len(of(HELD_OUT))
    for view, color in ((0, HELD_OUT), (5, CAMERA)):
        assert np.linalg.norm(of(color) - poses[view, :3, 3].numpy(), axis=1).min() < 1e-5


def test_the_photographs_show_the_outline_where_the_sphere_projects(tmp_path: Path) -> None:
    # one camera above, so that its picture is the only one, and the outline a circle about its middle
    pose = look_at(torch.tensor([0.0, 0, 4]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    intrinsics = torch.tensor([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])
    scene = ball_scene(
        sparse_points=None, masks=None, camera_to_world=pose[None], intrinsics=intrinsics[None],
        images=torch.tensor([90, 60, 30], dtype=torch.uint8).expand(1, HEIGHT, WIDTH, 3), image_names=["0.png"],
    )  # fmt: skip
    check_before_training(scene, tmp_path)
    page = np.asarray(Image.open(tmp_path / "preflight.png").convert("RGB")).astype(int)
    plain = (page == [90, 60, 30]).all(axis=2)
    rows, columns = np.flatnonzero(plain.any(axis=1)), np.flatnonzero(plain.any(axis=0))
    photograph = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = np.nonzero((photograph == SPHERE).all(axis=2))
    middle, scale = (np.array(photograph.shape[:2]) - 1) / 2, photograph.shape[1] / WIDTH
    radii = np.hypot(y - middle[0], x - middle[1])
    expected = 60 * np.tan(np.arcsin(1 / 4)) * scale
    np.testing.assert_allclose(radii, expected, atol=4)
    assert len(radii) > 2 * np.pi * expected


@pytest.mark.filterwarnings("ignore")
def test_a_hundred_large_photographs_take_less_than_two_seconds(tmp_path: Path) -> None:
    poses = ball_scene().camera_to_world[torch.arange(100) % NUM_VIEWS]
    intrinsics = torch.tensor([[1800.0, 0, 800], [0, 1800.0, 600], [0, 0, 1]]).repeat(100, 1, 1)
    scene = ball_scene(
        images=torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(100, 1200, 1600, 3), camera_to_world=poses,
        masks=torch.full((1, 1, 1), 255, dtype=torch.uint8).expand(100, 1200, 1600), intrinsics=intrinsics,
        image_names=[f"{v}.png" for v in range(100)],
        sparse_points=ball_points(poses, 0.5 * torch.rand(50_000, 3)),
    )  # fmt: skip
    assert len(points_of(scene)) <= 2000
    start = time.process_time()
    check_before_training(scene, tmp_path)
    assert time.process_time() - start < 2


class Idle(LightningModule):
    """Trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, data: ToyData, **arguments: object) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, **{"logger": CSVLogger(folder), **quiet, **arguments})
    trainer.fit(Idle(), data)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_fit_checks_first_and_leaves_the_picture_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = fit(tmp_path, ToyData(ball_scene(), held_out=4))
    assert Path(trainer.log_dir, "preflight.png").is_file()
    assert Path(trainer.log_dir, "preflight.ply").is_file()
    with pytest.raises(ValueError, match="nothing can be learnt here"):
        fit(tmp_path / "inverted", ToyData(ball_scene(masks=255 - ball_scene().masks)))
    # nothing is written without a logger, in a dry run, or where nothing is trained
    fit(tmp_path / "none", ToyData(ball_scene()), logger=False)
    fit(tmp_path / "dry", ToyData(ball_scene()), fast_dev_run=True)
    ToyData(read_as(ball_scene(), "inverse")).setup("test")
    assert not list(Path("none").rglob("preflight*")) + list(Path("dry").rglob("preflight*"))
    assert not list(tmp_path.glob("preflight*"))


def test_a_real_scan_raises_no_doubt_and_its_masks_must_be_its_own(test_data: Path) -> None:
    scene = read_scan(test_data / "dtu_scan24_400x300")
    facts = check_before_training(scene, None)
    assert facts.doubts == ()
    assert facts.mask_rays_meeting_sphere == 1
    for convention, says in (
        ("opengl", "multiply each from the right"),
        ("opengl inverse", "invert each and multiply"),
    ):
        with pytest.raises(ValueError, match=f"scan24: no ray .*{says}"):
            check_scene(read_as(scene, convention))


def test_project_agrees_with_the_slow_way() -> None:
    scene = ball_scene()
    sizes = np.tile([HEIGHT, WIDTH], (NUM_VIEWS, 1))
    cameras = Cameras.from_poses(scene.camera_to_world.numpy(), scene.intrinsics.numpy(), sizes)
    points = torch.randn(50, 3)
    pixels, seen = cameras.project(points.double().numpy())
    for view in range(NUM_VIEWS):
        expected, depth = project(points, scene.intrinsics[view], scene.camera_to_world[view])
        visible = (depth > 0) & (expected > 0).all(-1) & (expected < torch.tensor([WIDTH, HEIGHT])).all(-1)
        assert seen[view].tolist() == visible.tolist()
        np.testing.assert_allclose(pixels[view][seen[view]], expected[visible], atol=1e-3)
