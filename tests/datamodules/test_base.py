import pytest

from datamodules.base import DATASETS_WITH
from datamodules.dtu import DTU
from datamodules.image_folder import ImageFolder
from datamodules.shapenet import ShapeNet
from datamodules.synthetic import SyntheticObjects, SyntheticScene


@pytest.mark.parametrize("dataset", [DTU, ImageFolder, ShapeNet, SyntheticObjects, SyntheticScene])
def test_the_table_of_who_has_what_agrees_with_the_datasets(dataset: type) -> None:
    assert {key for key, names in DATASETS_WITH.items() if dataset.__name__ in names} == dataset.provides
