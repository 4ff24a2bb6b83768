"""What must hold for the repository itself: set-up, locks, generated files, shipped configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from schemas.export import file_schemas, generated_files

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
SCHEMA_LINE = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)
SHIPPED = sorted((ROOT / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", generated_files(), ids=lambda path: path.name)
def test_generated_files_are_fresh(path):
    assert path.read_text() == generated_files()[path], "run `make schemas`"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_names_its_schema_and_fits_it(path):
    reference = SCHEMA_LINE.search(path.read_text())
    assert reference, f"{path} lacks the line that editors read"
    schema = json.loads((path.parent / reference.group(1)).resolve().read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize("name", sorted(file_schemas()))
def test_a_schema_refuses_what_the_types_refuse(name):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"no such key": {"neither": 1}}, file_schemas()[name])


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_with_hashes_and_names_no_index(lock):
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    requirements = re.split(r"\n(?=\S)", text.strip())
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_both_locks_agree():
    pins = [dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)) for lock in LOCKS]
    assert {name: pins[1].get(name) for name in pins[0]} == pins[0]


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what setting up needs, with no environment in it."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    for name in (*LOCKS, "pyproject.toml", "scripts/setup-venv.sh"):
        shutil.copy(ROOT / name, root / name)
    return root


def old_python(directory: Path) -> Path:
    program = directory / "python3.8"
    program.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.19" && exit 0\nexit 1\n')
    program.chmod(0o755)
    return program


def test_a_python_that_is_too_old_is_named_with_the_way_out(checkout, tmp_path):
    environment = {**os.environ, "PYTHON": str(old_python(tmp_path))}
    done = subprocess.run(
        [checkout / "scripts/setup-venv.sh", "run"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; found: Python 3.8.19" in done.stderr
    assert "make run PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failing_package_index_is_told_and_nothing_looks_finished(checkout):
    environment = {
        **os.environ,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
    }
    done = subprocess.run(
        [checkout / "scripts/setup-venv.sh", "run"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Check the network or the package index" in done.stderr
    assert not (checkout / ".venv/.stamp").exists()


def test_no_file_names_a_package_index():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org", "deb." + "debian.org")
    named = [file for file in files if (ROOT / file).is_file() and any(
        host in (ROOT / file).read_text(encoding="utf-8", errors="ignore") for host in hosts
    )]  # fmt: skip
    assert named == []
