import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.photos import Photos
from datamodules.scene import Scene
from ops.cameras import project
from tests.datamodules.toy_photos import (
    CENTER,
    HEIGHT,
    NUM_VIEWS,
    WIDTH,
    intrinsics,
    picture,
    points,
    poses,
    transforms,
    write_colmap,
    write_json,
    write_masks,
    write_photo_folder,
    write_pictures,
)

SPHERE = [*CENTER.tolist(), 2.0]


def load(root: Path, **arguments: object) -> Photos:
    data = Photos(str(root), **{"normalization": SPHERE, "rays_per_batch": 64} | arguments)
    data.setup()
    return data


def world_points_in_pixels(scene: Scene, view: int) -> np.ndarray:
    """Where the toy points are seen, by the loaded cameras."""
    normalized = (points() - scene.normalized_to_dataset[:3, 3].numpy()) / float(scene.normalized_to_dataset[0, 0])
    pixels, _ = project(torch.from_numpy(normalized).float(), scene.intrinsics[view], scene.camera_to_world[view])
    return pixels.numpy()


def true_pixels(view: int) -> np.ndarray:
    """The same, by the cameras that were written."""
    world_to_camera = np.linalg.inv(poses()[view])
    homogeneous = (points() @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]) @ intrinsics().T
    return homogeneous[:, :2] / homogeneous[:, 2:]


@pytest.mark.parametrize("kind", ["transforms", "colmap"])
def test_both_kinds_of_cameras_make_one_scene(tmp_path: Path, kind: str) -> None:
    if kind == "colmap":
        pytest.importorskip("pycolmap")
        write_colmap(tmp_path / "sparse/0", write_pictures(tmp_path / "images"))
    else:
        write_photo_folder(tmp_path)
    scene = load(tmp_path).scene
    assert (scene.name, scene.masks, scene.image_sizes) == (tmp_path.name, None, None)
    for view in range(NUM_VIEWS):
        assert np.array_equal(scene.images[view].numpy(), picture(view))
        assert np.abs(world_points_in_pixels(scene, view) - true_pixels(view)).max() < 1e-3
    assert torch.allclose(scene.normalized_to_dataset.diagonal()[:3], torch.tensor(2.0, dtype=torch.float64))
    if kind == "colmap":
        assert len(scene.sparse_points.points) == len(points())


def test_normalisation_is_given_computed_or_by_hand(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, sphere_center=CENTER.tolist(), sphere_radius=1.25)
    for how, radius in (("auto", 1.25), ("given", 1.25), (SPHERE, 2.0), ("none", 1.0)):
        matrix = load_scene(tmp_path, how).normalized_to_dataset.numpy()
        assert np.allclose(np.diag(matrix), [radius] * 3 + [1])
        assert np.allclose(matrix[:3, 3], 0 if how == "none" else CENTER)
    computed = load_scene(tmp_path, "computed").normalized_to_dataset.numpy()
    assert np.linalg.norm(computed[:3, 3] - CENTER) < 0.3
    assert 0.5 < computed[0, 0] < 4
    with pytest.raises(ValueError, match=r"normalization is \[0, 0, 1\], expected \[x, y, z, radius\]"):
        load_scene(tmp_path, [0, 0, 1])
    write_photo_folder(tmp_path)
    with pytest.raises(ValueError, match=r"transforms.json gives no sphere_center and sphere_radius"):
        load_scene(tmp_path, "given")


def test_masks_of_a_whole_object_make_the_sphere_smaller(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    without = load_scene(tmp_path, "computed").normalized_to_dataset
    write_photo_folder(tmp_path, with_masks=True)
    matrix = load_scene(tmp_path, "computed").normalized_to_dataset
    assert matrix[0, 0] < 0.6 * without[0, 0]
    # the masks are the middle thirds: their farthest corner is 7 and 5 pixels from the axis, and 4.1 to 4.6 away
    assert matrix[0, 0] == pytest.approx(1.1 * 4.35 * np.hypot(7, 5) / 40, rel=0.1)
    assert (matrix[:3, 3] - torch.from_numpy(CENTER)).norm() < 0.2


def load_scene(root: Path, normalization: object) -> Scene:
    return Photos(str(root), normalization=normalization).load_scene()


def test_photographs_of_different_sizes_keep_their_cameras_and_draw_no_padding(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, with_masks=True)
    # every other one at twice the size, or cut at the bottom and on the right
    content = json.loads((tmp_path / "transforms.json").read_text())
    Image.fromarray(picture(1)).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST).save(
        tmp_path / "images/0001.png"
    )
    Image.fromarray(picture(3)[: HEIGHT - 10, : WIDTH - 4]).save(tmp_path / "images/0003.png")
    Image.fromarray(np.full((HEIGHT - 10, WIDTH - 4), 255, np.uint8)).save(tmp_path / "masks/0003.png")
    content["frames"][3] |= {"w": WIDTH - 4, "h": HEIGHT - 10}
    write_json(tmp_path / "transforms.json", content)
    data = load(tmp_path, reads={"rays", "ray_masks"}, images_per_batch=None, foreground_share=0.5, mask_margin=4)
    scene = data.scene
    expected = [(HEIGHT, WIDTH)] * NUM_VIEWS
    expected[1], expected[3] = (2 * HEIGHT, 2 * WIDTH), (HEIGHT - 10, WIDTH - 4)
    assert scene.image_sizes.tolist() == [list(size) for size in expected]
    assert scene.images.shape == (NUM_VIEWS, 2 * HEIGHT, 2 * WIDTH, 3)
    for view, scale in enumerate([1, 2, 1, 1, 1, 1]):
        assert np.abs(world_points_in_pixels(scene, view) - scale * true_pixels(view)).max() < 2e-3
    loader = iter(data.train_dataloader())
    for _ in range(20):
        batch = next(loader)
        for view in (0, 2, 3, 4, 5):
            rows, columns = (batch["colors"][batch["image_index"] == view] * 255).round().long()[:, 1:].unbind(-1)
            assert (rows < expected[view][0]).all()
            assert (columns < expected[view][1]).all()
        # black is padding, and no photograph but the first has black in it
        assert (batch["colors"][batch["image_index"] != 0].sum(-1) > 0).all()


def test_a_held_out_view_says_its_size_and_no_other_does(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    assert "image_sizes" not in next(iter(load(tmp_path, held_out=3).test_dataloader()))
    Image.fromarray(picture(0)).resize((2 * WIDTH, 2 * HEIGHT)).save(tmp_path / "images/0000.png")
    batch = next(iter(load(tmp_path, held_out=3, eval_downscale=2).test_dataloader()))
    assert batch["image_index"].tolist() == [[0, 3]]
    assert batch["image_sizes"].tolist() == [[[HEIGHT, WIDTH], [HEIGHT // 2, WIDTH // 2]]]
    assert batch["images"].shape == (1, 2, 3, HEIGHT, WIDTH)


def test_a_smaller_scale_and_a_lens_move_no_point(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, k1=-0.05, p1=0.002)
    scene = load(tmp_path, downscale=2).scene
    height, width = scene.images.shape[1:3]
    assert HEIGHT / 2 - 2 <= height <= HEIGHT / 2 + 1
    assert WIDTH / 2 - 2 <= width <= WIDTH / 2 + 1
    # the undistorted picture has the pinhole's pixels, cut at its edges: focal lengths stay, the centre moves
    assert torch.allclose(scene.intrinsics[:, 0, 0], torch.tensor(20.0))
    shift = world_points_in_pixels(scene, 0) - true_pixels(0) / 2
    assert np.ptp(shift, axis=0).max() < 1e-3
    with pytest.raises(ValueError, match="downscale is 0"):
        load(tmp_path, downscale=0)


def test_photographs_turned_by_exif_fit_their_cameras_either_way(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows as stored are columns of the scene
    names = write_pictures(tmp_path / "images")
    for view, name in enumerate(names):
        Image.fromarray(np.rot90(picture(view), 1).copy()).save(tmp_path / "images" / name, exif=exif)
    write_json(tmp_path / "transforms.json", transforms([f"images/{name}" for name in names]))
    assert np.array_equal(load(tmp_path).scene.images[2].numpy(), picture(2))
    # cameras of the photographs as they are stored, from a program that knows no EXIF
    write_json(tmp_path / "transforms.json", transforms(names, w=HEIGHT, h=WIDTH, cx=HEIGHT / 2, cy=WIDTH / 2))
    assert np.array_equal(load(tmp_path).scene.images[2].numpy(), np.rot90(picture(2), 1))


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)])
def test_masks_come_from_their_folder_at_any_scale(tmp_path: Path, size: tuple[int, int]) -> None:
    write_photo_folder(tmp_path)
    write_masks(tmp_path / "masks", [f"{view:03d}.png" for view in range(NUM_VIEWS)], size)
    if size == (HEIGHT, WIDTH):
        masks = load(tmp_path).scene.masks
    else:
        with pytest.warns(UserWarning, match=r"masks: 6 are of another size .*000.png for instance, and were resized"):
            masks = load(tmp_path).scene.masks
    assert masks.shape == (NUM_VIEWS, HEIGHT, WIDTH)
    assert (masks[:, HEIGHT // 3 + 1 : -HEIGHT // 3 - 1, WIDTH // 3 + 1 : -WIDTH // 3 - 1] == 255).all()
    assert (masks[:, : HEIGHT // 3 - 1, 1:] == 0).all()
    if size == (HEIGHT, WIDTH):
        assert masks[:, 0, 0].tolist() == list(range(NUM_VIEWS))


def test_masks_that_label_the_foreground_one_are_full(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    write_masks(tmp_path / "masks", [f"{view:04d}.png" for view in range(NUM_VIEWS)], value=1)
    assert load(tmp_path).scene.masks.unique().tolist() == [0, 255]


def test_masks_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    write_masks(tmp_path / "masks", [f"{view:04d}.png" for view in range(NUM_VIEWS)], (HEIGHT, HEIGHT))
    with pytest.raises(ValueError, match=r"0000.png has 24x24 pixels, 0000.png has 32x24: not the same shape"):
        load(tmp_path)


def test_alpha_is_a_mask_and_what_is_behind_it_has_one_colour(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    for view in range(NUM_VIEWS):
        alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
        alpha[:, : WIDTH // 2] = 0
        alpha[5, 20] = 51
        image = np.concatenate([picture(view), alpha], axis=-1)
        Image.fromarray(image).save(tmp_path / f"images/000{view}.png")
    for background, level in (("white", 255), ("black", 0)):
        scene = load(tmp_path, background=background).scene
        assert np.array_equal(scene.masks[2].numpy(), alpha[..., 0])
        assert (scene.images[:, :, : WIDTH // 2] == level).all()
        assert np.array_equal(scene.images[2, 6:, WIDTH // 2 :].numpy(), picture(2)[6:, WIDTH // 2 :])
        assert scene.images[2, 5, 20].tolist() == [round(0.2 * c + 0.8 * level) for c in picture(2)[5, 20]]
    assert load(tmp_path, masks="none").scene.masks is None
    Image.fromarray(picture(0)).save(tmp_path / "images/0000.png")
    assert load(tmp_path).scene.masks is None
    with pytest.raises(ValueError, match="masks is 'alpha', but not every photograph"):
        load(tmp_path, masks="alpha")


def test_opaque_alpha_is_no_mask(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    for view in range(NUM_VIEWS):
        Image.fromarray(picture(view)).convert("RGBA").save(tmp_path / f"images/000{view}.png")
    assert load(tmp_path).scene.masks is None


def test_test_views_are_held_out_beside_those_of_the_rule(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, test_filenames=["images/0001.png"])
    for rule, train in ((None, [0, 2, 3, 4, 5]), (2, [2, 4]), ([0], [2, 3, 4, 5])):
        data = load(tmp_path, held_out=rule)
        assert data.train_views == train
        assert sorted(data.train_views + data.held_out_views) == list(range(NUM_VIEWS))
    write_photo_folder(tmp_path, test_filenames=[f"images/000{view}.png" for view in range(NUM_VIEWS)])
    with pytest.raises(ValueError, match="all 6 views are held out"):
        load(tmp_path)


def test_cameras_are_taken_from_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    write_photo_folder(tmp_path)
    write_colmap(tmp_path / "sparse/0", [f"{view:04d}.png" for view in range(NUM_VIEWS)])
    (tmp_path / "sparse/0").rename(tmp_path / "model")
    assert load(tmp_path).scene.sparse_points is None
    assert load(tmp_path, camera_path=str(tmp_path / "model")).scene.sparse_points is not None
    with pytest.raises(ValueError, match=r"no COLMAP model: looked for sparse/0, sparse, .*; check root"):
        load(tmp_path, cameras="colmap")
    (tmp_path / "transforms.json").unlink()
    with pytest.raises(ValueError, match=r"no transforms.json: looked for transforms.json"):
        load(tmp_path, cameras="transforms")
    with pytest.raises(ValueError, match=r"no model in .* yet; run python -m datamodules.prepare.structure_from_mo"):
        load(tmp_path)


def test_sparse_points_of_a_model_beside_the_transforms_are_brought_into_its_frame(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    write_photo_folder(tmp_path)
    write_colmap(tmp_path / "sparse/0", [f"{view:04d}.png" for view in range(NUM_VIEWS)])
    scene = load(tmp_path, reads={"rays", "sparse_points"}).scene
    world = scene.sparse_points.points.double() * 2 + torch.from_numpy(CENTER)
    assert np.allclose(np.sort(world.numpy(), axis=0), np.sort(points(), axis=0), atol=1e-4)


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda root: None, {"root": "nowhere"}, r"the root nowhere is no folder"),
        (lambda root: None, {}, r"no image \(.bmp, .jpeg, .*\) in .*images, .*; check root and images"),
        (lambda root: (root / "a.HEIC").touch(), {}, "a.HEIC and 0 more cannot be read here; convert them to JPEG"),
        (lambda root: write_pictures(root, 2), {}, "holds 2 photographs, structure from motion needs at least 3"),
    ],
    ids=["no folder", "no images", "raw files", "two images"],
)
def test_a_folder_that_cannot_be_reconstructed_says_why(tmp_path: Path, prepare, arguments: dict, message: str) -> None:
    prepare(tmp_path)
    with pytest.raises(ValueError, match=message):
        Photos(**{"root": str(tmp_path)} | arguments).prepare_data()


def test_a_truncated_photograph_or_one_of_another_shape_is_named(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    path = tmp_path / "images/0003.png"
    content = path.read_bytes()
    path.write_bytes(content[:-60])
    with pytest.raises(ValueError, match=r"0003.png cannot be read as an image"):
        load(tmp_path)
    Image.fromarray(picture(3)[:, :-8]).save(path)
    with pytest.raises(ValueError, match=r"0003.png has 24x24 pixels, but its camera is for 32x24: not the same shape"):
        load(tmp_path)


def test_no_masks_and_no_points_say_how_to_get_them(tmp_path: Path) -> None:
    write_photo_folder(tmp_path)
    with pytest.raises(ValueError, match=r"N reads 'ray_masks', which .* does not have; put one mask a photograph"):
        load(tmp_path, reads={"rays", "ray_masks"}, reader="N")
    with pytest.raises(ValueError, match=r"N reads 'sparse_points', .*; a fit triangulates them first"):
        load(tmp_path, reads={"rays", "sparse_points"}, reader="N")


def test_blenders_chair_is_its_alpha_seen_from_all_sides(test_data: Path) -> None:
    root = test_data / "nerf_synthetic_chair_400"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    data = Photos(str(root), downscale=4, reads={"rays", "ray_masks"})
    data.setup("fit")
    scene = data.scene
    assert scene.images.shape == (60, 100, 100, 3)
    assert data.held_out_views == list(range(50, 60))
    # the chair's alpha is about a third of each picture, and white behind
    assert 0.1 < (scene.masks > 127).float().mean() < 0.6
    assert (scene.images[scene.masks == 0] == 255).all()
    depth_path = root / "test/r_0_depth_0000.png"
    with Image.open(depth_path) as file:
        depth = np.asarray(file.convert("RGBA"))[..., 0].reshape(100, 4, 100, 4)[:, 2, :, 2]
    foreground = (depth > 0) & (scene.masks[50].numpy() == 255)
    assert foreground.sum() > 500
    # the file's scale is 8 (1 - v / 255), depth along the axis; in the world the chair must then be in the sphere
    along = 8 * (1 - depth[foreground] / 255)
    rows, columns = np.nonzero(foreground)
    camera = (
        np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=-1)
        @ np.linalg.inv(scene.intrinsics[50].numpy()).T
    )
    pose = (scene.normalized_to_dataset @ scene.camera_to_world[50].double()).numpy()
    scale = float(scene.normalized_to_dataset[0, 0])
    world = (camera * along[:, None]) @ (pose[:3, :3] / scale).T + pose[:3, 3]
    assert np.linalg.norm(world, axis=1).max() < scale
    assert np.abs(np.median(world, axis=0)).max() < 0.6
