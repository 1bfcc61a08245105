"""One browser and one server for all pages."""

import pytest

from tools.site import browser, served


@pytest.fixture(scope="session")
def site():
    with served() as address:
        yield address


@pytest.fixture(scope="session")
def window():
    with browser() as found:
        yield found
