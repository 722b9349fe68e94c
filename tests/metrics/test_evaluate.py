"""The program that scores meshes of others: closed forms, the public evaluator, and what it says of bad input."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from metrics.evaluate import main
from tests.metrics.dtu_toy import CENTER, RADIUS, public_evaluator, write_official, write_views

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balls of radius 1 and 1.1, points of the first, and a toy scan of DTU."""
    path = tmp_path_factory.mktemp("evaluate")
    trimesh.creation.icosphere(4, 1.0).export(path / "ball.ply")
    trimesh.creation.icosphere(4, 1.1).export(path / "larger.obj")
    write_official(path / "official")
    write_views(path / "dtu_scan7")
    mesh = trimesh.creation.icosphere(4, RADIUS + 0.3)
    mesh.apply_translation(CENTER + np.array([0.2, 0, 0]))
    mesh.export(path / "scan.ply")
    return path


def scores(facts: dict) -> dict[str, float]:
    return facts["protocols"][0]["means"]


def fails(*args: str | Path) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        main([*map(str, args)])
    return str(error.value)


def test_a_ball_ten_percent_larger_is_a_tenth_away_in_every_format(folder: Path) -> None:
    for suffix in ("ply", "obj", "glb", "stl", "off"):
        mesh = folder / f"copy.{suffix}"
        trimesh.load(folder / "larger.obj", process=False).export(mesh)
        facts = main([str(mesh), "--truth", str(folder / "ball.ply"), "--surface.num_points", "20000"])
        assert scores(facts)["accuracy"] == pytest.approx(0.1, rel=0.02)
        assert scores(facts)["completeness"] == pytest.approx(0.1, rel=0.02)
        assert scores(facts)["normal_consistency"] > 0.99


def test_a_mesh_against_itself_is_two_independent_samples_apart(folder: Path) -> None:
    facts = main([str(folder / "ball.ply"), "--truth", str(folder / "ball.ply"), "--surface.num_points", "5000"])
    # mean distance to the nearest of n random points of density n / (4 pi): half of the mean spacing
    assert scores(facts)["chamfer_l1"] == pytest.approx(0.5 * np.sqrt(4 * np.pi / 5000), rel=0.05)


def test_files_say_what_the_numbers_are(folder: Path) -> None:
    output = folder / "results" / "larger.json"
    args = [folder / "larger.obj", "--truth", folder / "ball.ply", "--output", output, "--surface.num_points", "1000"]
    main([*map(str, args), "--surface.extents", "[longest_edge]", "--surface.seed", "3"])
    facts = json.loads(output.read_text())
    assert facts["inputs"] == {"mesh": str(folder / "larger.obj"), "truth": str(folder / "ball.ply")}
    assert facts["num_objects"] == 1
    assert facts["num_empty"] == 0
    (protocol,) = facts["protocols"]
    assert protocol["protocol"] == "metrics.surface.SurfaceScore"
    assert protocol["settings"] == {
        "num_points": 1000,
        "thresholds": [0.005, 0.01, 0.02],
        "extents": ["longest_edge"],
        "seed": 3,
    }
    assert "dataset's unit" in protocol["unit"]
    header, line = output.with_suffix(".csv").read_text().splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert row["object_id"] == "larger"
    assert float(row["accuracy"]) == pytest.approx(protocol["means"]["accuracy"])


def test_dtu_agrees_with_the_public_evaluator_on_files_of_its_formats(folder: Path) -> None:
    expected = public_evaluator(folder / "scan.ply", folder / "official", 7, seed=5)
    args = [folder / "scan.ply", "--truth", folder / "official", "--protocol", "dtu", "--scan", 7]
    found = scores(main([*map(str, args), "--dtu.culling", "none"]))
    assert list(found) == ["dtu_none_accuracy_mm", "dtu_none_completeness_mm", "dtu_none_overall_mm"]
    assert list(found.values()) == pytest.approx(expected, rel=1e-3)
    # a ball 0.3 mm too large and 0.2 mm aside, against points about as far apart as that
    assert 0.2 < found["dtu_none_overall_mm"] < 0.6


def test_dtu_agrees_with_the_public_evaluator_itself(folder: Path, tmp_path: Path) -> None:
    command = os.environ.get("BOTTEGA_DTU_EVALUATOR")
    if command is None:
        pytest.skip("set BOTTEGA_DTU_EVALUATOR to '<python with open3d, scikit-learn> <eval.py of DTUeval-python>'")
    shutil.copytree(folder / "official/Points", tmp_path / "Points")
    shutil.copytree(folder / "official/SampleSet/MVS Data/ObsMask", tmp_path / "ObsMask")
    flags = ["--data", folder / "scan.ply", "--scan", "7", "--dataset_dir", tmp_path, "--vis_out_dir", tmp_path]
    printed = subprocess.run([*shlex.split(command), *flags], capture_output=True, text=True, check=True).stdout
    args = [folder / "scan.ply", "--truth", folder / "official", "--protocol", "dtu", "--scan", 7]
    found = scores(main([*map(str, args), "--dtu.culling", "none"]))
    assert list(found.values()) == pytest.approx([float(word) for word in printed.split()[-3:]], rel=1e-3)


@pytest.mark.filterwarnings("ignore:DTU's culling is defined")
def test_dtu_culls_by_the_views_and_brings_a_normalised_mesh_into_millimetres(folder: Path) -> None:
    mesh = trimesh.load(folder / "scan.ply", process=False)
    floater = trimesh.creation.icosphere(2, 1.0)
    floater.apply_translation(CENTER + np.array([0, 0, 45]))
    both = trimesh.util.concatenate([mesh, floater])
    both.apply_translation(-CENTER)
    both.apply_scale(1 / 20)
    both.export(folder / "normalized.ply")
    args = [folder / "normalized.ply", "--truth", folder / "official", "--protocol", "dtu", "--scan", 7]
    args += ["--alignment", folder / "dtu_scan7/cameras_sphere.npz", "--views", folder / "dtu_scan7"]
    facts = main([*map(str, args), "--dtu.culling", "monosdf"])
    assert facts["protocols"][0]["settings"]["culling"] == "monosdf"
    assert facts["protocols"][0]["settings"]["seed"] == 0
    expected = scores(main([str(folder / "scan.ply"), *map(str, args[1:7]), "--dtu.culling", "none"]))
    assert scores(facts)["dtu_monosdf_overall_mm"] == pytest.approx(expected["dtu_none_overall_mm"], rel=1e-3)


def test_points_as_truth_of_every_kind(folder: Path) -> None:
    points = np.asarray(trimesh.load(folder / "ball.ply").vertices)
    np.save(folder / "points.npy", points)
    np.savez(folder / "points.npz", points=points.astype(np.float16), normals=points.astype(np.float16))
    np.savetxt(folder / "points.xyz", np.concatenate([points, points], 1))
    trimesh.PointCloud(points).export(folder / "points.ply")
    for suffix in ("npy", "npz", "xyz", "ply"):
        args = ["--truth", str(folder / f"points.{suffix}"), "--surface.num_points", "2000"]
        means = scores(main([str(folder / "larger.obj"), *args]))
        assert means["completeness"] == pytest.approx(0.11, abs=0.01)
        assert ("normal_consistency" in means) == (suffix in ("npz", "xyz"))


def test_each_bad_input_has_its_message(folder: Path, tmp_path: Path) -> None:
    ball, larger = folder / "ball.ply", folder / "larger.obj"
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert "a mesh with no faces to score (3 vertices)" in fails(tmp_path / "points.obj", "--truth", ball)
    broken = trimesh.load(ball, process=False)
    broken.vertices[5] = np.nan
    broken.export(tmp_path / "nan.ply")
    assert "1 of 2562 vertices are not finite" in fails(tmp_path / "nan.ply", "--truth", ball)
    (tmp_path / "cut.ply").write_bytes(ball.read_bytes()[:2000])
    assert "cut.ply: cannot be read" in fails(tmp_path / "cut.ply", "--truth", ball)
    assert "gone.ply: no such file" in fails(tmp_path / "gone.ply", "--truth", ball)
    assert "gone.ply: no such file" in fails(larger, "--truth", tmp_path / "gone.ply")
    (tmp_path / "mesh.xml").touch()
    assert "cannot read .xml, expected .glb" in fails(tmp_path / "mesh.xml", "--truth", ball)
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    assert "array of shape (0, 3), expected points of shape (N, 3)" in fails(larger, "--truth", tmp_path / "none.npy")
    np.savez(tmp_path / "other.npz", voxels=np.zeros(3))
    assert "the arrays voxels, expected points" in fails(larger, "--truth", tmp_path / "other.npz")
    (tmp_path / "matrix.txt").write_text("1 0\n0 1\n")
    assert "shape (2, 2), expected (4, 4)" in fails(larger, "--truth", ball, "--alignment", tmp_path / "matrix.txt")


def test_each_bad_input_of_dtu_has_its_message(folder: Path, tmp_path: Path) -> None:
    args = folder / "scan.ply", "--protocol", "dtu"
    assert "no --scan" in fails(*args, "--truth", folder / "official", "--dtu.culling", "none")
    without_views = fails(*args, "--truth", folder / "official", "--scan", 7)
    assert "culling 'neuralwarp' needs the masks and cameras of the scan; give --views" in without_views
    unknown = fails(*args, "--truth", folder / "official", "--scan", 8, "--dtu.culling", "none")
    assert "stl008_total.ply" in unknown
    assert "it has the scans 7" in unknown
    nothing = fails(*args, "--truth", tmp_path, "--scan", 7, "--dtu.culling", "none")
    assert "holds none of the official evaluation data" in nothing
    views = fails(*args, "--truth", folder / "official", "--scan", 7, "--views", tmp_path)
    assert "has no cameras_sphere.npz" in views
    shutil.copytree(folder / "dtu_scan7", tmp_path / "scan")
    (tmp_path / "scan/mask/003.png").unlink()
    counts = fails(*args, "--truth", folder / "official", "--scan", 7, "--views", tmp_path / "scan")
    assert "3 masks but 4 cameras" in counts
    shutil.copytree(folder / "official", tmp_path / "official")
    (tmp_path / "official/SampleSet/MVS Data/ObsMask/Plane7.mat").write_bytes(b"no mat file at all" * 20)
    damaged = fails(*args, "--truth", tmp_path / "official", "--scan", 7, "--dtu.culling", "none")
    assert "Plane7.mat: cannot be read as a .mat file" in damaged


def test_omniobject3d_brings_the_scan_into_the_frame_of_the_views(folder: Path) -> None:
    scan = trimesh.creation.box((2.0, 4.0, 8.0))  # in the scanner's unit, y up
    scan.apply_translation([1.0, 2.0, 3.0])
    scan.export(folder / "Scan.obj")
    (folder / "transforms.json").write_text(json.dumps({"frames": [{"scale": 0.05}]}))
    mesh = trimesh.creation.box((0.1, 0.4, 0.2))
    mesh.apply_translation([0.05, -0.15, 0.10 + 0.01])
    mesh.export(folder / "box.ply")
    args = ["--truth", str(folder / "Scan.obj"), "--protocol", "omniobject3d"]
    facts = main([str(folder / "box.ply"), *args, "--transforms", str(folder / "transforms.json")])
    means = scores(facts)
    assert facts["protocols"][0]["settings"] == {"density": 0.002, "max_dist": 0.1, "seed": 0}
    # moved along z by 0.01: only top and bottom, 8 of 28 parts of the surface, are off, and the sides at their rims
    assert 0.01 * 8 / 28 < means["omniobject3d_chamfer"] < 0.01 * 8 / 28 + 0.0025
    assert "no --transforms" in fails(folder / "box.ply", *args)
    (folder / "transforms.json").write_text("{}")
    message = fails(folder / "box.ply", *args, "--transforms", folder / "transforms.json")
    assert "has no frames[0].scale" in message


def test_it_prints_a_table_and_the_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder / "larger.obj"), "--truth", str(folder / "ball.ply"), "--surface.num_points", "2000"])
    printed = capsys.readouterr().out
    assert re.search(r"chamfer_l1 +0\.1\d", printed)
    assert "num_points 2000, thresholds [0.005, 0.01, 0.02], extents ['diagonal'], seed 0" in printed
    assert "unit: distances in the dataset's unit" in printed
    assert (folder / "larger_surface.json").is_file()


def test_as_a_program_it_ends_with_one_line_of_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metrics.evaluate", str(tmp_path / "gone.ply"), "--truth", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert re.fullmatch(r"error: .*gone.ply: no such file; expected a mesh.*\n", result.stderr)


def test_torch_draws_of_the_truth_are_not_those_of_the_mesh() -> None:
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 2**31)]
    assert not torch.equal(*draws)
