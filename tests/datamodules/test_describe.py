from PIL import Image

from datamodules.image_folder import ImageFolder
from datamodules.synthetic import SyntheticObjects, SyntheticScene


def test_a_scene_says_how_many_views_of_which_size_and_what_else_it_has(tmp_path):
    data = SyntheticScene(num_views=5, image_size=16, num_surface_points=1500, root=str(tmp_path), held_out=[1, 3])
    data.setup()
    assert data.describe() == "knot: 3 training views of 16 x 16, 2 held out; masks; 1,500 points of truth"
    assert data.describe_batch() == "512 rays of 1 view"


def test_a_collection_says_its_split_its_counts_and_what_each_object_has(tmp_path):
    data = SyntheticObjects(
        root=str(tmp_path), objects_per_category=10, categories=["chair", "solid"], pictures=3, batch_size=4
    )
    data.setup()
    assert data.describe().endswith(
        ": split synthetic: 14 train, 2 val, 4 test objects of 2 categories; 3 pictures each; voxels of 16, 32, 64; "
        "surface points; query points"
    )
    assert data.describe_batch() == "4 objects"


def test_own_pictures_say_how_many_they_are(tmp_path):
    for name in "ab":
        Image.new("RGBA", (8, 8), (200, 10, 10, 255)).save(tmp_path / f"{name}.png")
    data = ImageFolder(root=str(tmp_path), reads={"images"})
    data.setup()
    assert data.describe().endswith("0 train, 0 val, 2 test objects of category picture; 1 pictures each")
