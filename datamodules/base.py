"""What every dataset is: it knows what the method reads, and where its stream of batches stands."""

from typing import Any, ClassVar

from pytorch_lightning import LightningDataModule

_SCENES = ("DTU", "OmniObject3DScene", "OneObject", "Photos", "SyntheticScene")
_SOLIDS = ("OmniObject3D", "ShapeNet", "SyntheticObjects")
_OBJECTS = ("DTUObjects", *_SOLIDS)
DATASETS_WITH: dict[str, tuple[str, ...]] = {
    "rays": _SCENES,
    "ray_masks": _SCENES,
    "sparse_points": ("DTU", "OmniObject3DScene", "Photos"),
    "source_images": _SCENES,
    "images": (*_SCENES, *_OBJECTS, "ImageFolder"),
    "masks": (*_SCENES, *_OBJECTS, "ImageFolder"),
    "intrinsics": (*_SCENES, *_OBJECTS),
    "camera_to_world": (*_SCENES, *_OBJECTS),
    "image_index": _SCENES,
    "voxels": _SOLIDS,
    "query_points": _SOLIDS,
    "query_occupancy": _SOLIDS,
    "surface_points": ("DTU", "OmniObject3DScene", "OneObject", "SyntheticScene", *_OBJECTS),
    "surface_normals": ("OmniObject3DScene", "OneObject", "SyntheticScene", *_SOLIDS),
    "normalized_to_dataset": (*_SCENES, *_OBJECTS, "ImageFolder"),
    "observations": _SCENES,
}
"""Which datasets can fill a key, for the error of one that cannot."""


class DataModule(LightningDataModule):
    """Base of every dataset.

    Args:
        reads: keys that a training batch must hold; the command line takes them from the method.
        reader: name of the method, for errors.
    """

    provides: frozenset[str]
    """Keys that this dataset may have; one copy on disk may have fewer."""
    remedies: ClassVar[dict[str, str]] = {}
    """What a user can do about a copy that lacks a key."""

    def __init__(self, reads: frozenset[str], reader: str) -> None:
        super().__init__()
        self.reads, self.reader = reads, reader
        self._resumed_at = 0

    def describe(self) -> str:
        """What was found, in a line for the start of a run; once it is set up."""
        return type(self).__name__

    def describe_batch(self) -> str:
        """What a training batch of one process holds, as in "512 rays"; empty where unknown."""
        return ""

    def check_reads(self, available: frozenset[str], name: str) -> None:
        """Refuse what cannot feed the method.

        Raises:
            ValueError: a key is missing; it names the method, the data, the key and the datasets that may have it.
        """
        for key in sorted(self.reads - available):
            others = ", ".join(DATASETS_WITH.get(key, ())) or "none of those here"
            remedy = f"{self.remedies[key]}; " if key in self.remedies else ""
            raise ValueError(
                f"{self.reader} reads {key!r}, which {name} does not have; {remedy}datasets that may have it: {others}"
            )

    def batches_trained(self) -> int:
        """Number of the batch at which training goes on."""
        if self.trainer is None:
            return self._resumed_at
        # batches, not optimizer steps: the two differ where gradients accumulate
        return max(self._resumed_at, self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of batches stands."""
        return {"batches_trained": self.batches_trained()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the stream of batches go on where a saved run stood."""
        self._resumed_at = state_dict["batches_trained"]
