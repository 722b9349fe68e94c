"""How many batches of rays a second reach the training step, gathered in memory or on the device?

    python benchmarks/ray_loading.py                      CPU, which also stands in for the device
    python benchmarks/ray_loading.py --device cuda        a GPU
    python benchmarks/ray_loading.py --rays 64 --sizes 32 --batches 3 --workers 0

First, batches a second through the loader, the transfer and the gathering: "in memory" gathers rays and colours beside
the photographs and moves them, "on the device" moves the numbers of the chosen pixels and gathers there. Both yield the
same rays. Then, how the parts grow with the photographs: microseconds to choose a batch, with three quarters of it from
the dilated masks, and to gather it; and seconds of the dataset's start, which dilates the masks.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.machine import machine
from datamodules.rays import RayDataset
from datamodules.scene import Scene
from datamodules.scene_module import RayLoader
from ops.cameras import look_at

READS = {"rays", "ray_masks"}


def scene_of(num_views: int, height: int) -> Scene:
    """Noise, photographed from all around, 4 to 3; an ellipse of each photograph is foreground."""
    generator, width = torch.Generator().manual_seed(0), 4 * height // 3
    turns = torch.arange(num_views) * (2 * math.pi / num_views)
    positions = 3 * torch.stack([turns.cos(), turns.sin(), torch.full_like(turns, 0.3)], dim=-1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    camera = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    return Scene(
        name="noise",
        category="benchmark",
        images=torch.randint(256, (num_views, height, width, 3), generator=generator, dtype=torch.uint8),
        intrinsics=camera.repeat(num_views, 1, 1),
        camera_to_world=torch.stack([look_at(p, torch.zeros(3), torch.tensor([0.0, 0, 1])) for p in positions]),
        normalized_to_dataset=torch.eye(4, dtype=torch.float64),
        image_names=[f"{view}.png" for view in range(num_views)],
        masks=((x**2 + y**2 < 0.4).byte() * 255).repeat(num_views, 1, 1),
    )


def dataset_of(scene: Scene, num_rays: int) -> RayDataset:
    """As the fast preset draws."""
    views = list(range(len(scene.images)))
    return RayDataset(scene, views, READS, rays_per_batch=num_rays, images_per_batch=None, foreground_share=0.75)


def wait_for(device: str) -> None:
    """Until it has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def batches_a_second(dataset: RayDataset, device: str, num_workers: int, num_batches: int, on_device: bool) -> float:
    """After as many batches have warmed it up."""
    dataset.only_chooses = on_device
    resident = dataset.photographs.to(device) if on_device else None
    loaded = iter(RayLoader(dataset, batches_trained=lambda: 0, num_workers=num_workers))

    def take() -> None:
        for batch in itertools.islice(loaded, num_batches):
            moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            if resident is not None:
                resident.batch(moved)
        wait_for(device)

    take()
    start = time.perf_counter()
    take()
    return num_batches / (time.perf_counter() - start)


def microseconds(work: Callable[[int], object], device: str, repeats: int) -> float:
    """Median of calls with the numbers of batches."""
    times = []
    for index in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        work(index)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Parse the command line and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rays", nargs="+", type=int, default=[512, 4096, 32768])
    parser.add_argument("--sizes", nargs="+", type=int, default=[150, 300, 600, 1200], help="rows of a photograph")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--batches", type=int, default=100)
    arguments = parser.parse_args()
    device = arguments.device
    print(f"{machine(device)}; {arguments.views} photographs")
    scene = scene_of(arguments.views, arguments.sizes[-1])
    print(f"\n{'rays':>8}{'workers':>9}{'in memory, batches/s':>24}{'on the device':>16}{'ratio':>8}")
    for num_rays, num_workers in itertools.product(arguments.rays, arguments.workers):
        dataset = dataset_of(scene, num_rays)
        rates = [batches_a_second(dataset, device, num_workers, arguments.batches, way) for way in (False, True)]
        print(f"{num_rays:8}{num_workers:9}{rates[0]:24.0f}{rates[1]:16.0f}{rates[1] / rates[0]:8.2f}")
    num_rays = arguments.rays[len(arguments.rays) // 2]
    print(f"\n{num_rays} rays of photographs of{'choose us':>12}{'gather us':>12}{'start s':>10}")
    for height in arguments.sizes:
        scene = scene_of(arguments.views, height)
        start = time.perf_counter()
        dataset = dataset_of(scene, num_rays)
        seconds = time.perf_counter() - start
        resident, pixels = dataset.photographs.to(device), f"{4 * height // 3} x {height}"
        choices = [{k: v.to(device) for k, v in dataset.choice(i).items()} for i in range(arguments.batches)]
        choosing = microseconds(dataset.choice, device, arguments.batches)
        gathering = microseconds(lambda i, resident=resident, c=choices: resident.batch(c[i]), device, len(choices))
        print(f"{pixels:>28}{choosing:12.0f}{gathering:12.0f}{seconds:10.2f}")


if __name__ == "__main__":
    main()
