import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from datamodules.rays import RayDataset
from datamodules.scene import Scene
from datamodules.sparse_points import (
    PointFilter,
    filter_points,
    is_outlier,
    mask_shares,
    read_tracks,
    similarity_between,
)
from datamodules.tracks import Tracks, save_tracks
from ops.cameras import project
from tests.datamodules.toy import make_scene

NORMALIZED_TO_DATASET = torch.tensor([[3.0, 0, 0, 7], [0, 3, 0, 0], [0, 0, 3, -1], [0, 0, 0, 1]], dtype=torch.float64)


def toy_tracks() -> Tracks:
    # point 0 is good; 1 is seen twice; 2 is badly off; 3 is outside the sphere; 4 is beside the object; 5 is good
    points = np.array([[0.05, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1.2], [0, 0, 0.9], [0, 0.02, 0]])
    errors = np.array([0.2, 0.1, 3.0, 0.1, 0.1, 0.9])
    seen_by = {0: (0, 1, 4), 1: (1, 2), 2: (0, 1, 2), 3: (0, 1, 2), 4: (0, 1, 2), 5: (2, 3, 4)}
    entries = np.array([(view, point) for point, views in seen_by.items() for view in views])
    return Tracks.from_entries(points, errors, entries, num_views=5)


def toy_scene() -> Scene:
    # the mask's square is off the middle where the cameras look: open it up around it
    masks = torch.zeros_like(make_scene().masks)
    masks[:, 4:8, 6:11] = 255
    return make_scene(masks=masks, normalized_to_dataset=NORMALIZED_TO_DATASET)


def test_entries_become_rows_of_each_photograph() -> None:
    tracks = toy_tracks()
    assert tracks.lengths.tolist() == [3, 2, 3, 3, 3, 3]
    assert tracks.view_point_index[tracks.view_offsets[1] : tracks.view_offsets[2]].tolist() == [0, 1, 2, 3, 4]
    assert tracks.view_point_index[tracks.view_offsets[4] : tracks.view_offsets[5]].tolist() == [0, 5]


def test_selection_renumbers_points_and_keeps_who_saw_them() -> None:
    selected = toy_tracks().select(np.array([False, True, False, False, False, True]))
    assert selected.points.tolist() == [[0, 0, 0], [0, 0.02, 0]]
    assert selected.view_offsets.tolist() == [0, 0, 1, 3, 4, 5]
    assert selected.view_point_index.tolist() == [0, 0, 1, 1, 1]


def test_only_well_measured_points_of_the_object_stay() -> None:
    cleaned = filter_points(toy_tracks(), toy_scene())
    assert torch.allclose(cleaned.points, torch.tensor([[0.05, 0, 0], [0, 0.02, 0]]))
    assert cleaned.view_offsets.tolist() == [0, 1, 2, 3, 4, 6]
    without_masks = filter_points(toy_tracks(), dataclasses.replace(toy_scene(), masks=None))
    assert torch.allclose(without_masks.points[:, 2], torch.tensor([0, 0.9, 0]))


@pytest.mark.parametrize(
    ("number", "setting", "reason"),
    [
        (1, {"min_track_length": 2}, "seen in fewer than 3 photographs"),
        (2, {"max_error": 5.0}, "more than 1 px off"),
        (4, {"min_mask_share": -1.0}, "beside the masks"),
    ],
)
def test_each_criterion_alone_decides_over_its_point(number: int, setting: dict, reason: str, caplog) -> None:
    tracks, scene = toy_tracks(), toy_scene()
    with caplog.at_level(logging.INFO):
        assert len(filter_points(tracks, scene).points) == 2
    assert f"1 {reason}" in caplog.text
    kept = filter_points(tracks, scene, PointFilter(**setting)).points
    assert len(kept) == 3
    assert (kept == torch.from_numpy(tracks.points[number]).float()).all(dim=1).any()


def test_nothing_outside_the_sphere_is_kept_but_the_check_before_training_knows_of_it() -> None:
    anything = PointFilter(min_track_length=0, max_error=100, min_mask_share=-1, outlier_deviations=100)
    filtered = filter_points(toy_tracks(), toy_scene(), anything)
    assert len(filtered.points) == 5
    assert filtered.points.norm(dim=1).max() < 1
    assert torch.equal(filtered.all_points, torch.from_numpy(toy_tracks().points).float())
    # what is badly measured is no evidence of anything
    assert filter_points(toy_tracks(), toy_scene()).all_points.norm(dim=1).tolist() == pytest.approx(
        [0.05, 1.2, 0.9, 0.02]
    )


def test_one_line_says_what_was_kept_and_what_dropped_and_why(caplog) -> None:
    with caplog.at_level(logging.INFO):
        filter_points(toy_tracks(), toy_scene())
    assert [record.message for record in caplog.records] == [
        "toy: 2 of 6 sparse points kept; dropped 1 seen in fewer than 3 photographs, 1 more than 1 px off, 1 outside "
        "the sphere, 1 beside the masks"
    ]


def test_points_without_a_reprojection_error_are_not_judged_by_it_and_that_is_said(caplog) -> None:
    tracks = dataclasses.replace(toy_tracks(), errors=np.array([np.nan, 0.1, np.nan, 0.1, 0.1, 3.0]))
    with caplog.at_level(logging.INFO):
        kept = filter_points(tracks, toy_scene()).points
    assert torch.equal(kept, torch.tensor([[0.05, 0, 0], [0, 0, 0]]))
    assert "; 2 have no reprojection error to judge by" in caplog.text


def test_of_two_photographs_no_point_needs_to_be_seen_in_three() -> None:
    scene = dataclasses.replace(toy_scene(), **{
        name: getattr(toy_scene(), name)[:2] for name in ("images", "intrinsics", "camera_to_world", "masks")
    })  # fmt: skip
    tracks = Tracks.from_entries(np.zeros((1, 3)), np.zeros(1), np.array([[0, 0], [1, 0]]), 2)
    assert len(filter_points(tracks, scene).points) == 1


def test_a_point_far_from_all_others_is_an_outlier_at_any_scale() -> None:
    rng = np.random.default_rng(0)
    cluster = rng.uniform(-1, 1, size=(500, 3)) * np.array([1.0, 1.0, 0.01])
    points = np.concatenate([cluster, [[0, 0, 8.0], [0, 9.0, 1.0]]])
    for scale in (1e-3, 1, 1e3):
        found = is_outlier(points * scale, deviations=4.0)
        assert found[-2:].all()
        assert found[:-2].mean() < 0.01
    assert not is_outlier(points, deviations=100.0).any()
    assert not is_outlier(rng.normal(size=(8, 3)), deviations=4.0).any()  # too few to tell
    grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), axis=-1).reshape(-1, 3)
    assert not is_outlier(grid, deviations=4.0).any()


def test_the_share_of_masks_is_that_of_the_photographs_that_saw_the_point() -> None:
    scene = toy_scene()
    scene.masks[2:] = 0
    assert mask_shares(toy_tracks(), scene)[[0, 1, 5]].tolist() == pytest.approx([2 / 3, 1 / 2, 0])


@pytest.mark.parametrize("images_per_batch", [1, 2, None])
def test_a_batchs_points_were_all_seen_in_the_photographs_of_its_rays(images_per_batch: int | None) -> None:
    rng = np.random.default_rng(0)
    # every point has a place of its own, so that the batch tells which it is
    points = 0.1 * rng.uniform(-1, 1, size=(200, 3))
    saw = rng.random((5, 200)) < 0.3
    errors = rng.uniform(0, 1.5, size=200)
    tracks = Tracks.from_entries(points, errors, np.argwhere(saw), 5)
    scene = dataclasses.replace(make_scene(), masks=None)
    scene = dataclasses.replace(scene, sparse_points=filter_points(tracks, scene))
    kept = (saw.sum(axis=0) >= 3) & (errors <= 1)
    assert 0 < len(scene.sparse_points.points) <= kept.sum()
    dataset = RayDataset(scene, [0, 1, 3, 4], {"rays", "sparse_points"}, rays_per_batch=7, sparse_points_per_batch=20,
                         images_per_batch=images_per_batch)  # fmt: skip
    drawn = set()
    for index in range(30):
        batch = dataset.batch(index)
        views = batch["image_index"].unique().tolist()
        for point in batch["sparse_points"]:
            number = int(abs(torch.from_numpy(points).float() - point).sum(dim=1).argmin())
            assert kept[number]
            assert saw[views, number].any()
            drawn.add(number)
    assert len(drawn) > 20


def test_saved_points_come_back_in_the_normalised_frame(tmp_path: Path) -> None:
    scene, tracks = toy_scene(), toy_tracks()
    in_dataset = dataclasses.replace(tracks, points=tracks.points * 3 + [7, 0, -1])
    save_tracks(tmp_path / "sparse_points.npz", in_dataset, scene.image_names)
    read = read_tracks(tmp_path / "sparse_points.npz", scene)
    np.testing.assert_allclose(read.points, tracks.points, atol=1e-12)
    np.testing.assert_array_equal(read.view_point_index, tracks.view_point_index)
    np.testing.assert_array_equal(read.view_offsets, tracks.view_offsets)


def test_points_of_another_scene_or_kind_are_refused(tmp_path: Path) -> None:
    save_tracks(tmp_path / "sparse_points.npz", toy_tracks(), [])
    with pytest.raises(ValueError, match="is of 5 photographs, toy has 4"):
        read_tracks(tmp_path / "sparse_points.npz", make_scene(num_views=4))
    np.savez(tmp_path / "other.npz", points=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"other\.npz lacks \['frame', .*prepare.triangulate"):
        read_tracks(tmp_path / "other.npz", toy_scene())


def test_a_file_without_errors_is_read_as_one_that_does_not_know_them(tmp_path: Path) -> None:
    tracks = toy_tracks()
    np.savez(tmp_path / "points.npz", points=tracks.points, frame="normalized", view_offsets=tracks.view_offsets,
             view_point_index=tracks.view_point_index)  # fmt: skip
    read = read_tracks(tmp_path / "points.npz", toy_scene())
    assert np.isnan(read.errors).all()
    np.testing.assert_array_equal(read.points, tracks.points)


def test_bare_points_count_as_seen_in_every_photograph(tmp_path: Path) -> None:
    points = np.array([[0.05, 0, 0], [0, 0.02, 0], [0, 0, 1.2]], dtype=np.float32)
    np.save(tmp_path / "points.npy", points)
    tracks = read_tracks(tmp_path / "points.npy", toy_scene())
    assert tracks.lengths.tolist() == [5, 5, 5]
    cleaned = filter_points(tracks, toy_scene())
    assert torch.equal(cleaned.points, torch.from_numpy(points[:2]))  # the third is outside the sphere
    assert cleaned.view_offsets.tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (np.zeros((4, 2)), r"holds float64 of shape \(4, 2\), expected \(P, 3\) points"),
        (np.array([[1], [2, 3]], dtype=object), "is broken or no NumPy file"),
        (None, "is broken or no NumPy file"),
    ],
)
def test_other_arrays_and_broken_files_are_named(tmp_path: Path, content: np.ndarray | None, problem: str) -> None:
    path = tmp_path / "points.npy"
    if content is None:
        path.write_bytes(b"\x93NUMPY\x01\x00v")
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"points\.npy {problem}"):
        read_tracks(path, toy_scene())


def test_the_similarity_between_moved_points_is_the_move() -> None:
    rng = np.random.default_rng(0)
    matrix = np.eye(4)
    matrix[:3, :3] = 2.5 * Rotation.random(rng=rng).as_matrix()
    matrix[:3, 3] = [1, 2, 3]
    source = rng.normal(size=(10, 3))
    target = source @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(similarity_between(source, target), matrix, atol=1e-12)
    # a mirror image has no similarity: the result must still keep handedness
    mirrored = similarity_between(source, target * [1, 1, -1])
    assert np.linalg.det(mirrored[:3, :3]) > 0


def write_colmap_model(folder: Path, scene: Scene, tracks: Tracks, frame: np.ndarray, name: str = "{}") -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    scale = np.linalg.norm(frame[:3, 0])
    points = tracks.points @ frame[:3, :3].T + frame[:3, 3]
    for view, image_name in enumerate(scene.image_names):
        k = scene.intrinsics[view]
        camera = pycolmap.Camera(
            camera_id=view + 1, model="PINHOLE", width=16, height=12, params=[k[0, 0], k[1, 1], k[0, 2], k[1, 2]]
        )
        model.add_camera_with_trivial_rig(camera)
        pose = frame @ scene.camera_to_world[view].double().numpy()
        rotation = pose[:3, :3].T / scale
        rigid = pycolmap.Rigid3d(np.hstack([rotation, -rotation @ pose[:3, 3:]]))
        seen = tracks.view_point_index[tracks.view_offsets[view] : tracks.view_offsets[view + 1]]
        in_normalized = torch.from_numpy(tracks.points[seen]).float()
        pixels, _ = project(in_normalized, k, scene.camera_to_world[view])
        image = pycolmap.Image(
            name=name.format(image_name), keypoints=pixels.double().numpy(), camera_id=view + 1, image_id=view + 1
        )
        model.add_image_with_trivial_frame(image, rigid)
    for number, point in enumerate(points):
        track = pycolmap.Track()
        for view in range(len(scene.images)):
            seen = tracks.view_point_index[tracks.view_offsets[view] : tracks.view_offsets[view + 1]]
            if number in seen:
                track.add_element(view + 1, seen.tolist().index(number))
        point_id = model.add_point3D(point, track)
        model.points3D[point_id].error = tracks.errors[number]
    folder.mkdir(parents=True)
    model.write(str(folder))


@pytest.mark.parametrize("frame", ["dataset", "normalized", "its own"])
def test_a_colmap_model_in_any_frame_gives_the_points_and_who_saw_them(tmp_path: Path, frame: str) -> None:
    scene, tracks = toy_scene(), toy_tracks()
    own = np.eye(4)
    own[:3, :3] = 0.3 * Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    own[:3, 3] = [4, 5, 6]
    frames = {"dataset": NORMALIZED_TO_DATASET.numpy(), "normalized": np.eye(4), "its own": own}
    write_colmap_model(tmp_path / "sparse" / "0", scene, tracks, frames[frame])
    read = read_tracks(tmp_path / "sparse" / "0", scene)
    order = [int(np.argmin(np.linalg.norm(read.points - point, axis=1) + abs(read.errors - error)))
             for point, error in zip(tracks.points, tracks.errors, strict=True)]  # fmt: skip
    np.testing.assert_allclose(read.points[order], tracks.points, atol=1e-5)
    np.testing.assert_allclose(read.errors[order], tracks.errors)
    for view in range(5):
        ours = tracks.view_point_index[tracks.view_offsets[view] : tracks.view_offsets[view + 1]]
        theirs = read.view_point_index[read.view_offsets[view] : read.view_offsets[view + 1]]
        assert sorted(order[point] for point in ours) == sorted(theirs.tolist())


def test_photographs_that_the_scene_leaves_out_are_no_matter(tmp_path: Path) -> None:
    scene, tracks = toy_scene(), toy_tracks()
    write_colmap_model(tmp_path / "model", scene, tracks, np.eye(4))
    kept = [0, 2, 3, 4]
    fewer = dataclasses.replace(
        scene,
        image_names=[scene.image_names[view] for view in kept],
        **{name: getattr(scene, name)[kept] for name in ("images", "masks", "intrinsics", "camera_to_world")},
    )
    read = read_tracks(tmp_path / "model", fewer)
    counts = np.diff(tracks.view_offsets)[kept]
    assert np.diff(read.view_offsets).tolist() == counts.tolist()
    with pytest.raises(ValueError, match=r"has 2 posed photographs of toy, at least 3 are needed"):
        read_tracks(tmp_path / "model", dataclasses.replace(scene, image_names=["0.png", "1.png", "x", "y", "z"]))


def test_a_colmap_model_of_other_photographs_or_poses_is_refused(tmp_path: Path) -> None:
    scene = toy_scene()
    write_colmap_model(tmp_path / "names", scene, toy_tracks(), np.eye(4), name="other_{}")
    with pytest.raises(ValueError, match=r"0 posed .* of toy, at least 3 .* it has other_\d\.png, but toy has no such"):
        read_tracks(tmp_path / "names", scene)
    poses = scene.camera_to_world.clone()
    poses[2, 0, 3] += 0.5
    write_colmap_model(tmp_path / "poses", dataclasses.replace(scene, camera_to_world=poses), toy_tracks(), np.eye(4))
    with pytest.raises(ValueError, match="cameras stand elsewhere than those of toy"):
        read_tracks(tmp_path / "poses", scene)
