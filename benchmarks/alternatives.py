"""The CPU demo against what others would run in its place, on the same rays and for the same wall time.

    python benchmarks/alternatives.py                            statue, 60 s each
    python benchmarks/alternatives.py --scene knot --seconds 120

Every row is fit and test of configs/neuralangelo_demo.yaml; only what the table names differs. How many steps fit into
the time is measured first, in two short runs, because schedules stretch over a run's length. The alternatives:

- numerical gradient: four taps, as in the paper, in place of exact derivatives;
- plain torch: the hash grid's reference backend, index_select and sums, as it is written without own kernels;
- MLP: NeuS's network (arXiv:2106.10689) of 8 x 256 softplus units on 6 frequencies, differentiated by autograd.

Below stands after how much time the demo's own settings were as good, over runs of a fraction of the time.
"""

import argparse
import logging
import math
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

# idle OpenMP threads of torch otherwise spin and take the cores from the hash grid's; before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.machine import machine
from benchmarks.time_to_quality import COLUMNS, fit, score
from methods.neuralangelo import Neuralangelo
from ops.encodings import fourier_encoding

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
TRIAL_STEPS, TRIAL_SHARE = 8, 1 / 8


class NeusSDF(nn.Module):
    """NeuS's SDF network: a sphere at first (SAL, arXiv:1911.10414), the input again in the middle."""

    num_frequencies, num_layers, skip = 6, 8, 4

    def __init__(self, hidden_size: int, feature_size: int, initial_radius: float = 0.5) -> None:
        super().__init__()
        size = 3 + 6 * self.num_frequencies
        self.size, layers = size, []
        for inputs, outputs in pairwise([size, *[hidden_size] * self.num_layers]):
            layer = nn.Linear(inputs, outputs - size if len(layers) == self.skip - 1 else outputs)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.out_features))
            nn.init.zeros_(layer.bias)
            if len(layers) == 0:
                nn.init.zeros_(layer.weight[:, 3:])
            if len(layers) == self.skip:
                nn.init.zeros_(layer.weight[:, -(size - 3) :])
            layers.append(weight_norm(layer))
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(hidden_size, 1 + feature_size)
        nn.init.normal_(self.out.weight, mean=math.sqrt(math.pi / hidden_size), std=1e-4)
        nn.init.constant_(self.out.bias, -initial_radius)

    def both(self, points: Tensor) -> Tensor:
        """(..., 3) points -> (..., 1 + F) signed distance and feature."""
        x = encoded = fourier_encoding(points, self.num_frequencies)
        for number, layer in enumerate(self.layers):
            x = torch.cat([x, encoded], dim=-1) / math.sqrt(2) if number == self.skip else x
            x = F.softplus(layer(x), beta=100)
        return self.out(x)

    def forward(self, points: Tensor, active_levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(..., 3) points -> (...) signed distances, always in full precision."""
        return self.both(points)[..., 0]

    def with_analytic_derivatives(self, points: Tensor, active_levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """sdf (...), gradient (..., 3), no Laplacian (...), feature (..., F)."""
        is_training = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            points = points.clone().requires_grad_()
            out = self.both(points)
            (gradient,) = torch.autograd.grad(out[..., 0].sum(), points, create_graph=is_training)
        return out[..., 0], gradient, torch.zeros_like(out[..., 0]), out[..., 1:]


class NeusStyle(Neuralangelo):
    """Neuralangelo's rendering and losses on NeuS's network."""

    def __init__(self, mlp_size: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sdf_network = NeusSDF(mlp_size, self.color_network.layers[0].in_features - 22)


ALTERNATIVES = {
    "ours": [],
    "numerical gradient": ["--model.gradient=numerical_4"],
    "plain torch": ["--model.gradient=numerical_4", "--model.grid_backend=reference"],
    "MLP": [
        f"--model={NeusStyle.__module__ if __name__ != '__main__' else 'benchmarks.alternatives'}.NeusStyle",
        "--model.gradient=analytic",
        "--model.curvature_weight=0",
        # NeuS's rate; the demo's is for tables
        "--model.optimizer={class_path: torch.optim.Adam, init_args: {lr: 5.0e-4}}",
    ],
}


def trained_for(seconds: float, sizes: tuple[str, int, Path], flags: list[str]) -> tuple[int, float, dict[str, float]]:
    """Steps that fit into the time, seconds that they took, and scores."""
    scene, image_size, folder = sizes
    fit(scene, 1, image_size, "cpu", folder, flags)  # compiles
    steps = TRIAL_STEPS
    for share in (TRIAL_SHARE, 1.0):  # the second trial is long enough for steps as they will be
        steps = max(round(share * seconds * steps / fit(scene, steps, image_size, "cpu", folder, flags)), 1)
    taken = fit(scene, steps, image_size, "cpu", folder, flags)
    return steps, taken, score(folder)


def main() -> None:
    """Parse the command line, run, print one row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=["statue", "knot"], default="statue")
    parser.add_argument("--seconds", type=float, default=60, help="of training, each")
    parser.add_argument("--only", nargs="+", choices=list(ALTERNATIVES), default=list(ALTERNATIVES))
    parser.add_argument("--image_size", type=int, default=160, help="of the photographs, in pixels")
    arguments = parser.parse_args()

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(f"{machine('cpu')}\n{arguments.scene}, {arguments.seconds:g} s of training each\n")
    titles = ["steps", "s", *COLUMNS.values()]
    print(f"| | {' | '.join(titles)} |\n|---|{'---:|' * len(titles)}")
    chamfers, ours = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        sizes = arguments.scene, arguments.image_size, Path(temporary)
        rows = [(name, 1.0) for name in arguments.only]
        rows += [("ours", fraction) for fraction in FRACTIONS] if "ours" in arguments.only else []
        for name, fraction in rows:
            steps, seconds, scores = trained_for(fraction * arguments.seconds, sizes, ALTERNATIVES[name])
            values = " | ".join(f"{value:.3f}" for value in scores.values())
            print(f"| {name} | {steps} | {seconds:.1f} | {values} |", flush=True)
            if name == "ours":
                ours.append((seconds, scores["chamfer_l1"]))
            else:
                chamfers[name] = scores["chamfer_l1"]
    for name, chamfer in chamfers.items():
        reached = min((seconds for seconds, found in ours if found <= chamfer), default=math.inf)
        print(f"ours has the Chamfer distance of '{name}' after at most {reached:.1f} s")


if __name__ == "__main__":
    main()
