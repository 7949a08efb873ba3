"""What the graph tests share: stable property tests, ONNX text, and running models as they are."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.support")  # before anything of it is imported

from tests.support import fake_cuda  # noqa: E402
from tests.support.browsers import CHROMIUM, DRIVER  # noqa: E402
from tests.support.plain_runtime import PlainRuntime  # noqa: E402

settings.register_profile(
    "tieops",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tieops")


_IN_TEST_ALL = {
    "support/firefox.py": "selenium",
    "support/pages.py": "selenium",
    "rendering/test_html.py": "selenium",
    "docs/test_site.py": "mkdocs",
}
collect_ignore = [file for file, package in _IN_TEST_ALL.items() if not find_spec(package)]


def pytest_report_header() -> str | None:
    """Say which files need packages that are not here."""
    files = ", ".join(collect_ignore)
    return f'without {files}: pip install -e ".[test-all]"' if files else None


def pytest_runtest_setup() -> None:
    """Make exports share torch's table of operators, once a test has imported torch's exporter."""
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        from tests.support.export_tables import keep_tables

        keep_tables()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a tool that is not here, and say so; in CI it runs, and fails then."""
    if os.environ.get("CI"):
        return
    browser = "Chromium" if not CHROMIUM else "chromedriver" if not DRIVER else None
    _deselect(config, items, "browser", browser and f"no {browser}", "the page")
    _deselect(config, items, "fake_cuda", fake_cuda.why_not(), "CUDA on a stand-in")


def _deselect(
    config: pytest.Config, items: list[pytest.Item], marker: str, missing: str | None, of: str
) -> None:
    left_out = [item for item in items if missing and item.get_closest_marker(marker)]
    if not left_out:
        return
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker(marker)]
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"{missing} here: {len(left_out)} tests of {of} left out")


@pytest.fixture(scope="session")
def plain_runtime() -> PlainRuntime:
    return PlainRuntime()


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory, worker_id: str = "master") -> fake_cuda.FakeCuda:
    """A CUDA device for child processes, compiled once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / "fake_cuda"
    with FileLock(f"{folder}.lock"):
        return fake_cuda.FakeCuda(folder) if folder.exists() else fake_cuda.build(folder)
