import functools
import json
import operator
from pathlib import Path

import pytest

from datamodules.object_source import ObjectName
from datamodules.splits import sorted_split, split_of_file

OBJECTS = [ObjectName(f"m{number:02d}", category) for category in ("chair", "table") for number in (3, 1, 2, 0, 4)]


CHAIR = "03001627"


def names(members: list[int]) -> list[str]:
    return [f"{OBJECTS[index].category}/{OBJECTS[index].object_id}" for index in members]


def test_sorted_names_are_split_within_each_category() -> None:
    split = sorted_split(OBJECTS, 0.8, 0.0)
    assert names(split["train"]) == [f"{c}/m0{n}" for c in ("chair", "table") for n in range(4)]
    assert names(split["test"]) == ["chair/m04", "table/m04"]
    assert split["val"] == []


def test_validation_is_taken_from_the_end_of_the_training_names_and_never_from_test() -> None:
    split = sorted_split(OBJECTS, 0.8, 0.25)
    assert names(split["val"]) == ["chair/m03", "table/m03"]
    assert split["test"] == sorted_split(OBJECTS, 0.8, 0.0)["test"]
    assert sorted(functools.reduce(operator.iadd, split.values(), [])) == list(range(10))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([{"taxonomy_id": "03001627", "train": ["m00", "m01"], "val": ["m02"], "test": ["m03"]}], "pix2vox"),
        ({"train": {CHAIR: {"m00": [1, 2], "m01": [0]}}, "val": {CHAIR: ["m02"]}, "test": {CHAIR: ["m03"]}}, "own"),
        ({"train": ["chair/m00", "03001627/m01"], "val": ["chair/m02"], "test": ["chair/m03"]}, "own"),
    ],
    ids=["Pix2Vox", "Mesh R-CNN", "names"],
)
def test_json_files_of_all_three_forms_are_read(tmp_path: Path, content: object, name: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    found, split = split_of_file(path, OBJECTS)
    assert found == name
    assert {stage: names(members) for stage, members in split.items()} == {
        "train": ["chair/m00", "chair/m01"],
        "val": ["chair/m02"],
        "test": ["chair/m03"],
    }


def test_models_that_are_not_there_are_counted_aloud_within_categories_that_are(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"train": ["chair/m00", "chair/m99", "sofa/m00"], "test": ["chair/m01"]}))
    with pytest.warns(UserWarning, match=r"1 of its models .* missing, chair/m99 for one"):
        _, split = split_of_file(path, OBJECTS)
    assert names(split["train"]) == ["chair/m00"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no json file"),
        ("3", "expected Pix2Vox' list of categories, or a dict .* found a int"),
        ('{"models": []}', "found a dict"),
        ('[{"taxonomy_id": "03001627"}]', "found a list"),
        ('{"train": ["m00"]}', "found a dict"),
        ('{"train": ["chair/m00"], "test": ["chair/m00"]}', "chair/m00 is in both train and test"),
        ('{"train": ["sofa/m00"]}', "none of its 1 models is there"),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        split_of_file(path, OBJECTS)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none.json; give r2n2, onet, imnet or a json file"):
        split_of_file(tmp_path / "none.json", OBJECTS)
