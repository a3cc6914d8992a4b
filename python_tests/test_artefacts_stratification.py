"""Artefacts E1 and E2: a test that rejects smooth manifolds, and one that can never reject anything."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from stratcore.analysis import FiberBundleTest, nearest_neighbors, reference_test, source_rule, spacings_test
from stratcore.data.manifolds import SMOOTH_NULLS
from stratcore.data.singular import plane_union_line

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@pytest.mark.parametrize("name", ["sphere 2", "torus 2", "gaussian 8"])
def test_e1_rejections_of_smooth_manifolds(name):
    """Rejection rates of 70 to 90 % are what the source documents' rule gives on data without any stratum."""
    space = SMOOTH_NULLS[name].draw(600, 0)
    scaled = StandardScaler().fit_transform(space.points)
    theirs = source_rule(nearest_neighbors(scaled, 599).distances)
    assert theirs.rejected.mean() >= 0.98
    assert FiberBundleTest().fit(scaled).rejected_.sum() == 0


def test_e2_a_scan_of_no_position():
    """The published defaults, ranks 10 to 50 at width 10, leave no position: no data could be rejected."""
    radii = nearest_neighbors(plane_union_line(600).points, 200).distances
    width, slopes = 10, len(range(10, 50))
    assert len(range(2 * width, slopes - 2 * width)) == 0
    with pytest.raises(ValueError, match="the scan is empty and can never reject"):
        reference_test(radii, (10, 50), "change")
    assert reference_test(radii, (10, 200), "change").rejected.any()
    assert np.nanmin(spacings_test(radii, (10, 50), "change").p_value) < 1e-3
