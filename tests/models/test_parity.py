"""Logits and activations are torchvision's."""

import os

import numpy as np
import pytest
from ports import NETWORKS, TOLERANCE, errors, goldens

# One of each kind. The others are the same layers, more of them; what they are made of, and what
# their parameters are called, is compared for all of them (test_structure.py).
QUICK = ("alexnet", "vgg11", "resnet18", "resnet50", "googlenet", "inception_v3")


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_activations_are_those_of_torchvision(name):
    if name not in QUICK and os.environ.get("JAXPLAIN_PARITY") != "all":
        pytest.skip("more of the same kind; `make parity` runs it")
    found = errors(name)
    print(f"{name}: largest error {max(found.values()):.1e}, in {len(found)} tensors")
    recorded = [key for key in goldens() if key.startswith(f"{name}/act/")]
    assert len(found) == 1 + len(recorded) // 3
    np.testing.assert_array_less(list(found.values()), TOLERANCE, err_msg=str(found))
