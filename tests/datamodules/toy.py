"""Small scenes for the tests of the datasets."""

import torch

from datamodules.scene import Scene, SparsePoints
from datamodules.scene_module import SceneDataModule
from ops.cameras import look_at

HEIGHT, WIDTH = 12, 16


def make_scene(num_views: int = 5, **changes: object) -> Scene:
    """Photographs whose every pixel says which view, row and column it is; foreground is a 4x4 square."""
    view, y, x = torch.meshgrid(torch.arange(num_views), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    masks = torch.zeros(num_views, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[:, 4:8, 5:9] = 255
    turns = torch.arange(num_views) * (2 * torch.pi / num_views)
    positions = 3 * torch.stack([turns.cos(), turns.sin(), torch.full_like(turns, 0.3)], dim=-1)
    intrinsics = torch.tensor([[20.0, 0.0, WIDTH / 2], [0.0, 20.0, HEIGHT / 2], [0.0, 0.0, 1.0]]).repeat(
        num_views, 1, 1
    )
    intrinsics[:, 0, 2] += torch.arange(num_views) * 0.1
    # view v sees points 10 v to 10 v + 14
    visible = torch.cat([torch.arange(15) + 10 * v for v in range(num_views)])
    fields = {
        "name": "toy",
        "category": "test",
        "images": torch.stack([view, y, x], dim=-1).byte(),
        "intrinsics": intrinsics,
        "camera_to_world": torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) for p in positions]),
        "normalized_to_dataset": torch.eye(4, dtype=torch.float64),
        "image_names": [f"{v}.png" for v in range(num_views)],
        "masks": masks,
        "sparse_points": SparsePoints(
            torch.arange(10 * num_views + 5)[:, None] * torch.tensor([0.001, 0.0, 0.0]),
            torch.arange(num_views + 1) * 15,
            visible,
        ),
    }
    return Scene(**{**fields, **changes})


class ToyData(SceneDataModule):
    """A scene that is in memory already."""

    provides = frozenset({"rays", "ray_masks", "sparse_points", "images", "masks"})

    def __init__(self, toy: Scene | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.toy = toy or make_scene()

    def load_scene(self) -> Scene:
        return self.toy
