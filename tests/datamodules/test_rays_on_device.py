"""Photographs that lie on the device: the same rays as from memory, and only where they fit."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules import scene_module
from datamodules.rays import Photographs, RayDataset
from datamodules.synthetic import SyntheticScene
from tests.datamodules.test_rays import assert_same
from tests.datamodules.test_resume import train
from tests.datamodules.toy import HEIGHT, WIDTH, ToyData, make_scene

ALL = {"rays", "ray_masks", "sparse_points", "source_images"}
SIZES = torch.tensor([[HEIGHT, WIDTH], [5, 9], [HEIGHT, 10], [9, WIDTH], [HEIGHT, WIDTH]])


def made_for(device: str, **arguments: object) -> ToyData:
    """Data of a trainer on a device."""
    data = ToyData(make_scene(), **arguments)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        lightning_module=None,
        global_rank=0,
        world_size=1,
        fit_loop=SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
        ),
    )
    data.setup()
    return data


@pytest.mark.parametrize(
    ("reads", "images_per_batch", "num_workers"),
    [({"rays"}, 2, 0), ({"rays"}, None, 0), (ALL, 2, 0), (ALL, None, 0), (ALL, 2, 2)],
)
def test_rays_made_on_the_device_are_those_made_in_memory(
    reads: set[str], images_per_batch: int | None, num_workers: int
) -> None:
    batches = []
    for images_on_device in (False, True):
        data = ToyData(
            make_scene(image_sizes=SIZES),
            reads=reads,
            rays_per_batch=30,
            images_per_batch=images_per_batch,
            foreground_share=0.5,
            num_sources=2,
            num_workers=num_workers,
            images_on_device=images_on_device,
        )
        data.setup()
        loaded = list(itertools.islice(data.train_dataloader(), 4))
        assert all(("pixel_index" in batch) == images_on_device for batch in loaded)
        batches.append([data.on_after_batch_transfer(batch, 0) for batch in loaded])
    assert_same(*batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: rays are not made on one")
def test_rays_made_on_a_gpu_are_those_made_in_memory() -> None:
    dataset = RayDataset(make_scene(), [0, 1, 2, 4], ALL, rays_per_batch=100, images_per_batch=None, num_sources=2)
    resident = dataset.photographs.to("cuda")
    for index in range(3):
        expected = dataset.batch(index)
        found = resident.batch({name: tensor.cuda() for name, tensor in dataset.choice(index).items()})
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.device.type == "cuda"
            torch.testing.assert_close(tensor.cpu(), expected[key], rtol=1e-5, atol=1e-6)


def test_a_run_with_resident_photographs_sees_the_batches_of_one_without_and_resumes_alike(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", max_steps=4)
    resident = train(tmp_path, images_on_device=True, max_steps=4)
    resumed = train(tmp_path / "again", tmp_path / "step=2.ckpt", images_on_device=True, max_steps=4)
    assert len(plain) == 4
    assert [torch.equal(*pair) for pair in zip(plain, resident, strict=True)] == [True] * 4
    assert [torch.equal(*pair) for pair in zip(plain[2:], resumed, strict=True)] == [True] * 2


def test_gathering_asks_the_device_for_nothing() -> None:
    """Tensors without values would fail wherever one is needed, which on a GPU is where the host would wait."""
    dataset = RayDataset(make_scene(), [0, 1, 2, 4], ALL, rays_per_batch=10, num_sources=2)
    choice = {name: tensor.to("meta") for name, tensor in dataset.choice(0).items()}
    batch = dataset.photographs.to("meta").batch(choice)
    for key, tensor in dataset.batch(0).items():
        assert batch[key].device.type == "meta"
        assert (batch[key].shape, batch[key].dtype) == (tensor.shape, tensor.dtype), key


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CUDA device with some free memory, that hands tensors back as they are."""
    found = SimpleNamespace(free=0, held=[])
    monkeypatch.setattr(scene_module, "free_memory", lambda device: found.free if device.type == "cuda" else torch.inf)
    monkeypatch.setattr(Photographs, "to", lambda self, device: found.held.append(str(device)) or self)
    return found


@pytest.mark.parametrize(
    ("setting", "device", "room", "is_resident"),
    [
        ("auto", "cuda", 4.01, True),
        ("auto", "cuda", 3.99, False),
        (True, "cuda", 1.01, True),
        (False, "cuda", 1000, False),
        ("auto", "cpu", 1000, False),
        (True, "cpu", 0, True),
    ],
)
def test_photographs_lie_on_the_device_where_they_fit(
    gpu: SimpleNamespace, setting: bool | str, device: str, room: float, is_resident: bool
) -> None:
    data = made_for(device, images_on_device=setting, reads=ALL)
    needed = RayDataset(data.scene, data.train_views, ALL).photographs.num_bytes
    assert needed > 5 * HEIGHT * WIDTH * (3 + 1 + 1)  # colours, masks and grey photographs
    gpu.free = room * needed
    batch = next(iter(data.train_dataloader()))
    assert ("pixel_index" in batch) == is_resident
    assert gpu.held == [device] * is_resident
    assert data.on_after_batch_transfer(batch, 0)["colors"].shape == (512, 3)
    data.teardown("fit")
    assert data._resident is None


def test_photographs_that_must_but_do_not_fit_are_refused_with_figures(gpu: SimpleNamespace) -> None:
    data = made_for("cuda", images_on_device=True)
    data.scene = make_scene(num_views=5, images=torch.zeros(5, 2000, 1000, 3, dtype=torch.uint8), masks=None)
    gpu.free = 20 * 2**20
    with pytest.raises(
        ValueError, match=r"toy: images_on_device is true, but .* take 29 MiB, and cuda has 20 MiB free"
    ):
        data.train_dataloader()


@pytest.mark.parametrize(("typed", "setting"), [("auto", "auto"), ("true", True), ("false", False)])
def test_the_command_line_takes_auto_true_and_false(typed: str, setting: bool | str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(SyntheticScene, "data")
    assert parser.parse_args([f"--data.images_on_device={typed}"]).data.images_on_device == setting
