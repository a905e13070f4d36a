"""What a start records of its software and hardware."""

from __future__ import annotations

import platform

import numpy

from sft_dist.run.environment import cpu_name, package_versions


def test_installed_versions_are_recorded_and_missing_packages_are_not():
    versions = package_versions()
    assert versions["numpy"] == numpy.__version__
    assert versions["python"] == platform.python_version()
    assert "flash-attn" not in versions


def test_the_processor_has_its_models_name_or_that_of_its_architecture(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(file) == "Some CPU @ 2 GHz"
    assert cpu_name(tmp_path / "none") == platform.machine()
