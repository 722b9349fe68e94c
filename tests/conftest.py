import os
from pathlib import Path

# before torch is imported: its idle threads would spin against the hash grid's
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

# read when triton is imported, by whomever: its kernels then run, slowly, on CPU tensors
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same global randomness, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real data that is not part of the project; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("BOTTEGA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real test data not found: set BOTTEGA_TEST_DATA to the folder that holds it")
    return folder
