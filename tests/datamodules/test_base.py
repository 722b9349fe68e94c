import pytest

from datamodules.base import DATASETS_WITH
from datamodules.dtu import DTU
from datamodules.dtu_objects import DTUObjects
from datamodules.image_folder import ImageFolder
from datamodules.omniobject3d import OmniObject3D, OmniObject3DScene
from datamodules.one_object import OneObject
from datamodules.photos import Photos
from datamodules.shapenet import ShapeNet
from datamodules.synthetic import SyntheticObjects, SyntheticScene

DATASETS = [DTU, DTUObjects, ImageFolder, OmniObject3D, OmniObject3DScene, OneObject, ShapeNet, SyntheticObjects]


@pytest.mark.parametrize("dataset", [*DATASETS, Photos, SyntheticScene])
def test_the_table_of_who_has_what_agrees_with_the_datasets(dataset: type) -> None:
    assert {key for key, names in DATASETS_WITH.items() if dataset.__name__ in names} == dataset.provides
