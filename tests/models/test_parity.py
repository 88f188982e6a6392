"""Logits and activations are torchvision's."""

import os

import numpy as np
import pytest
from ports import NETWORKS, TOLERANCE, errors, goldens

# The others take a minute and some gigabytes: JAXPLAIN_PARITY=all runs them too.
QUICK = ("alexnet", "resnet18", "googlenet")


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_activations_are_those_of_torchvision(name):
    if name not in QUICK and os.environ.get("JAXPLAIN_PARITY") != "all":
        pytest.skip("a large network; set JAXPLAIN_PARITY=all")
    found = errors(name)
    recorded = [key for key in goldens() if key.startswith(f"{name}/act/")]
    assert len(found) == 1 + len(recorded) // 3
    np.testing.assert_array_less(list(found.values()), TOLERANCE, err_msg=str(found))
