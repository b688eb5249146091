# SPDX-License-Identifier: Apache-2.0
"""``mock_host(name, **changes)``: this process is on the host of a profile, as pynvml sees it.

For example, on a host whose second card is in use by nobody knows whom::

    def test_it(mock_host):
        host = mock_host("l40s-x4", devices={1: {"memory": {"used": 2**30}}})
        facts = observe(host.root)
        host.set(devices={1: {"errors": {"*": 15}}})   # and now it is lost

``host.root`` plays the root file system; ``host.profile`` is what the machine is told to be.
"""

from __future__ import annotations

import ctypes

import pynvml
import pytest

import mock_nvml

VARIABLE = "FIRSTLIGHT_MOCK_PROFILE"
NAME = "libnvidia-ml.so.1"


class Host:
    """A host of a profile.

    :ivar profile: what it is now.
    :ivar root: the folder that plays its root file system.
    """

    def __init__(self, folder, name, changes):
        self.root = folder / "host"
        self.root.mkdir()
        self._json = folder / "profile.json"
        self._written = []
        self.profile = mock_nvml.load(name)
        self.set(**changes)

    @property
    def json(self):
        """The path of the file that the libraries read."""
        return str(self._json)

    def set(self, **changes):
        """Change the host, as :func:`mock_nvml.changed` says; the next nvmlInit sees it."""
        end_sessions()
        self.profile = mock_nvml.changed(self.profile, **changes)
        for path in self._written:
            path.unlink(missing_ok=True)
        mock_nvml.write(self.profile, self._json)
        self._written = mock_nvml.write_files(self.profile, self.root)


def end_sessions():
    """Shut NVML down, however often it was initialised."""
    ended = pynvml.nvmlLib is None
    while not ended:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError_Uninitialized:
            ended = True


@pytest.fixture(scope="session")
def mock_libraries(repository):
    """The folder that holds both libraries; they are compiled when their sources change."""
    return mock_nvml.build(repository / ".cache")


@pytest.fixture
def mock_host(mock_libraries, tmp_path, monkeypatch):
    """Be on the host of a profile: ``mock_host(name, **changes)``."""
    # The loader gives pynvml the library of this name that the process has already.
    ours = ctypes.CDLL(str(mock_libraries / NAME))
    pynvml._LoadNvmlLibrary()
    found = ctypes.cast(pynvml.nvmlLib.nvmlInit_v2, ctypes.c_void_p).value
    assert found == ctypes.cast(ours.nvmlInit_v2, ctypes.c_void_p).value, (
        "This process has loaded another %s before ours" % NAME)
    made = []

    def start(name, **changes):
        assert not made, "A test is on one host; change it with .set()"
        made.append(Host(tmp_path / "mock", name, changes))
        monkeypatch.setenv(VARIABLE, made[0].json)
        return made[0]

    (tmp_path / "mock").mkdir()
    yield start
    end_sessions()
