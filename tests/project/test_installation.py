"""pyproject, lock and environment.yml say the same, and the lock names no address."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def locked(repository):
    lines = (repository / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line.strip()}


def test_every_dependency_is_locked_within_its_bounds(project, locked):
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    wanted = [Requirement(text) for text in project["dependencies"] + extras]
    for requirement in wanted:
        if requirement.name == project["name"]:  # other extras of this package, which are in `extras` themselves
            assert requirement.extras <= set(project["optional-dependencies"])
            continue
        pin = locked[canonicalize_name(requirement.name)]
        versions = re.findall(r"(?:==|>=)([^,;\s]+)", str(pin.specifier))
        assert versions, f"{pin} is not pinned"
        assert requirement.specifier.contains(versions[0], prereleases=True), f"{pin} is outside {requirement}"


def test_only_torch_is_left_to_the_machine(locked):
    assert {name for name, pin in locked.items() if "==" not in str(pin.specifier)} == {"torch", "torchvision"}
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_lock_has_no_address(repository):
    assert not re.search(r"https?:|file:|--|@", (repository / "requirements.lock").read_text())


def test_every_version_but_torch_s_has_hashes(repository, locked):
    text = (repository / "requirements.hashes").read_text()
    assert not re.search(r"https?:|file:|@", text)
    hashed = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        pin, *hashes = re.split(r"\s*\\\n\s*", block)
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
        hashed[canonicalize_name(Requirement(pin).name)] = Requirement(pin)
    assert {name: str(pin.specifier) for name, pin in hashed.items()} == {
        name: str(pin.specifier) for name, pin in locked.items() if name not in {"torch", "torchvision"}
    }


def test_environment_yml_is_this_package_and_its_lock(repository, project):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    assert plain == [f"python{project['requires-python']}", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e .[dev]"]}
