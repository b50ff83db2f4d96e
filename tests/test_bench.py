"""The benchmark compares loops that compute the same."""

import bench
import pytest

from nayer_lib.compute import Compute


@pytest.mark.slow
def test_both_loops_have_the_same_losses():
    ours = bench.build("cpu", 4, Compute())
    plain, folder = bench.build_plain(ours, "cpu")
    with folder:
        pairs = bench.same_losses(ours, plain)
    assert set(pairs) == {"L_CE", "L_BN", "-L_KL", "L_S"}
    for name, (one, other) in pairs.items():
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6), name
