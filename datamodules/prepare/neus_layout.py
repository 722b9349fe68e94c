"""Write a scene as NeuS lays scenes out: ``image/``, ``mask/``, ``cameras_sphere.npz``."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.scene import Scene


def write_neus_layout(scene: Scene, folder: Path) -> None:
    """Write a scene's photographs, masks and cameras.

    Args:
        scene: what to write; its truth and sparse points are left out, the layout has no place for them.
        folder: where to; made if missing.
    """
    (folder / "image").mkdir(parents=True, exist_ok=True)
    for view, image in enumerate(scene.images.numpy()):
        Image.fromarray(image).save(folder / "image" / f"{view:06d}.png")
    if scene.masks is not None:
        (folder / "mask").mkdir(exist_ok=True)
        for view, mask in enumerate(scene.masks.numpy()):
            Image.fromarray(np.repeat(mask[..., None], 3, axis=2)).save(folder / "mask" / f"{view:03d}.png")
    scale_mat = scene.normalized_to_dataset.numpy()
    cameras = {}
    for view, (intrinsics, pose) in enumerate(zip(scene.intrinsics, scene.camera_to_world, strict=True)):
        matrix = np.eye(4)
        matrix[:3, :3] = intrinsics.double().numpy()
        # the layout counts pixels from the centre of the first one, we from its corner
        matrix[:2] -= 0.5 * matrix[2]
        # K [R | t] into the dataset's frame; the similarity's scale leaves with the division by K [R | t]'s last row
        world_mat = matrix @ np.linalg.inv(scale_mat @ pose.double().numpy())
        world_mat[:3] *= np.linalg.norm(scale_mat[:3, 0])
        cameras[f"world_mat_{view}"] = world_mat
        cameras[f"scale_mat_{view}"] = scale_mat
    np.savez(folder / "cameras_sphere.npz", **cameras)
