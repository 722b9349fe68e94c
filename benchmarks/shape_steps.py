"""How many training steps a second does each shape method take, and what do half precision and memory order give?

    python -m benchmarks.shape_steps --device cuda              every method at its config's batch size
    python -m benchmarks.shape_steps --batch_size 4             on a CPU, with a small batch
    python -m benchmarks.shape_steps --compile --methods onet   beside it the network compiled, which takes a while
    python -m benchmarks.shape_steps --small                    small networks: shows that it runs

A step is forward, loss, backward and optimizer, on a batch of noise that is in memory already: no loading. The plain
form is float32 in PyTorch's own memory order; the others are float32 with convolutions in ``channels_last`` order,
bfloat16 by autocast (``--trainer.precision bf16-mixed``), and both. Sides take turns, the fastest round of each counts;
on a CPU it is the time of the process's threads, on a GPU that between two synchronisations.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from benchmarks.machine import machine
from benchmarks.shape_methods import NAMES, config_of, method_of, random_batch
from callbacks.memory_format import order_weights

VARIANTS = {
    "plain": {},
    "channels_last": {"channels_last": True},
    "bf16": {"half": True},
    "bf16, channels_last": {"half": True, "channels_last": True},
}


def step_of(
    name: str, batch_size: int, device: str, *, half: bool, channels_last: bool, compiled: bool, is_small: bool
) -> Callable[[], float]:
    """One training step of a method, as a function that gives the loss."""
    method = method_of(name, is_small=is_small).to(device).train()
    method.log = method.log_dict = lambda *_, **__: None
    method.step_generator = lambda: torch.Generator(device).manual_seed(0)
    if channels_last:
        order_weights(method)
    optimizer = method.configure_optimizers()["optimizer"]
    batch = random_batch(name, batch_size, device)
    training_step = torch.compile(method.training_step) if compiled else method.training_step

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            loss = training_step(batch, 0)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def seconds(step: Callable[[], float], device: str) -> float:
    """Of one step."""
    # reading the loss has waited for the GPU
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Time every variant of every method and print ratios to the plain form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--batch_size", type=int, help="objects; the config's on a GPU and 4 on a CPU where not given")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--compile", action="store_true", help="beside them, the plain form by torch.compile")
    parser.add_argument("--small", action="store_true", help="small networks")
    arguments = parser.parse_args()
    device = arguments.device
    print(machine(device))
    print("ratio: the plain form's time through this one's")
    variants = VARIANTS | ({"compiled": {"compiled": True}} if arguments.compile else {})
    if arguments.small:  # too few channels for the other order
        variants = {title: settings for title, settings in variants.items() if not settings.get("channels_last")}
    for name in arguments.methods:
        paper = config_of(name)["data"]["init_args"]["batch_size"]
        batch_size = arguments.batch_size or (paper if device == "cuda" else 4)
        print(f"{name}, {batch_size} objects (the paper's batch: {paper})")
        defaults = {"half": False, "channels_last": False, "compiled": False, "is_small": arguments.small}
        sides, times, losses = {}, {}, {}
        for title, settings in variants.items():
            sides[title] = step_of(name, batch_size, device, **(defaults | settings))
            losses[title] = sides[title]()
        for _ in range(arguments.rounds):
            for title, step in sides.items():
                times.setdefault(title, []).append(seconds(step, device))
        for title, rounds in times.items():
            ratio = min(times["plain"]) / min(rounds)
            print(
                f"  {title:20s} {1e3 * min(rounds):9.1f} ms {1 / min(rounds):8.2f} steps/s   ratio {ratio:5.2f}   "
                f"first loss {losses[title]:.6g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
