"""The wheel holds the science and nothing else, and the rooms keep to themselves."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=240)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_of_mapstack_and_no_other_room(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "mapstack").rglob("*.py")}
    assert names == tracked | {"mapstack/py.typed"}


def test_the_wheel_states_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    assert "Requires-Dist: torch>=2.11" in metadata
    assert "Requires-Dist: transformers<5,>=4.57" in metadata
    assert "Requires-Dist: lightning>=2.6.4; extra == 'job'" in metadata.replace('"', "'")
    assert "Apache-2.0" in metadata


def test_every_pinned_package_is_one_version() -> None:
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    names = {line.split("==")[0].lower() for line in pins}
    assert len(names) == len(pins)
    assert {"torch", "torchvision", "transformers", "captum", "lightning", "webdataset", "medclip"} <= names


def test_importing_the_package_loads_no_torch_and_no_job_framework() -> None:
    code = "import sys, mapstack; print(sorted({'torch', 'lightning', 'webdataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


def test_explaining_loads_no_job_framework() -> None:
    code = "import sys, mapstack; mapstack.explain; print(sorted({'lightning', 'webdataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


def test_unknown_names_are_told_as_python_tells_them() -> None:
    import mapstack

    with pytest.raises(AttributeError, match="module 'mapstack' has no attribute 'explian'"):
        mapstack.explian  # noqa: B018


def test_the_version_is_one() -> None:
    import mapstack

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: mapstack._version.__version__"
    assert mapstack.__version__.count(".") == 2
