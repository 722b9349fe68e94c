import torch

from methods.resnet import IMAGENET_MEAN, ResNet18


def _torchvision_names():
    names = {"conv1.weight"} | _norm("bn1")
    for layer in range(1, 5):
        for block in range(2):
            stem = f"layer{layer}.{block}"
            names |= {f"{stem}.conv1.weight", f"{stem}.conv2.weight"} | _norm(f"{stem}.bn1") | _norm(f"{stem}.bn2")
        if layer > 1:
            names |= {f"layer{layer}.0.downsample.0.weight"} | _norm(f"layer{layer}.0.downsample.1")
    return names


def _norm(stem):
    return {f"{stem}.{x}" for x in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def test_network_is_torchvisions_without_the_classifier():
    with torch.device("meta"):
        network = ResNet18()
    state = network.state_dict()
    assert state.keys() == _torchvision_names()
    # torchvision documents 11,689,512 with the classifier of 512 x 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.conv1.weight": (128, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_map_is_halved_five_times_before_the_mean():
    network = ResNet18(width=2).eval()
    sizes = []
    network.layer4.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    assert network(torch.rand(3, 3, 224, 224)).shape == (3, 16)
    assert sizes == [(16, 7, 7)]


def test_mean_colour_of_imagenet_is_zero_to_the_first_layer():
    network = ResNet18(width=2).eval()
    network.bn1.register_forward_pre_hook(lambda _, args: torch.testing.assert_close(args[0], 0 * args[0]))
    network(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32))
