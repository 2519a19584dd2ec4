"""Which tests of the priors take long."""

import pytest

NETWORKS = ("flow", "continuous")
MONTE_CARLO = {"agree", "mean_agrees"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Draws of network families take hundreds of calls: what is compared with many of them is slow."""
    for item in items:
        family = getattr(getattr(item, "callspec", None), "params", {}).get("family")
        if getattr(family, "__name__", None) in NETWORKS and MONTE_CARLO & set(item.fixturenames):
            item.add_marker("slow")
