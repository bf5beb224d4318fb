import subprocess
import sys

import pytest

from optsd.errors import BadInput, Unsupported
from optsd.estimate import devices
from optsd.estimate.devices import DEFAULT, DEVICES, find


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_device_names_its_source(device):
    assert device.source
    assert find(device.name.upper()) is device
    if device.has_data_sheet:
        assert device.memory_bytes >= 8e9
        assert 3e11 <= device.bytes_s < 1e13
        # Cards from before 2018 have no matrix units for integers, the GTX 1080 Ti none at all.
        rates = [
            device.operations_s[kind] for kind in ("float32", "float16", "int8", "int4") if kind in device.operations_s
        ]
        assert rates == sorted(rates)
        assert len(set(rates)) == len(rates) or device.name == "gtx1080ti"


@pytest.mark.parametrize(
    ("said", "name", "assumed"),
    [
        ("A100", "a100", True), ("NVIDIA A100-SXM4-40GB", "a100-40gb", False), ("A100 80 GB SXM", "a100", False),
        ("3090 Ti", "rtx3090ti", False), ("RTX 3090", "rtx3090", False), ("GTX 1080 Ti", "gtx1080ti", False),
        ("NVIDIA A10G", "a10g", False), ("A10 24 GB", "a10", False), ("RTX A5000", "rtxa5000", False),
        ("RTX 6000 Ada", "rtx6000-ada", False), ("RTX 4080 (WSL2)", "rtx4080", False), ("V100", "v100", True),
        ("laptop RTX 4090", "", False), ("H100 96 GB", "", False), ("L20 x 2", "", False), ("several GPUs", "", False),
        ("RTX 4090 / RTX 5090", "", False), ("RTX 3080 Ti", "", False), ("M2 Ultra", "", False),
        ("RTX 2080 Ti", "", False),
    ],
)  # fmt: skip
def test_devices_as_people_name_them(said, name, assumed):
    found, meant = devices.said(said)
    assert (found, bool(meant)) == (name, assumed)
    assert not found or found in DEVICES


def test_rates_of_the_a100_are_its_data_sheets():
    assert find("a100").operations_s == {
        "float32": 156e12, "float16": 312e12, "bfloat16": 312e12, "int8": 624e12, "int4": 1248e12
    }  # fmt: skip
    assert find("a100").bytes_s == 2.039e12


def test_default_and_unknown_devices():
    assert find("").name == DEFAULT
    with pytest.raises(BadInput, match="no data sheet for device 'a1000'; choose one of a100, a100-40gb, h100"):
        find("a1000")


def test_a_type_that_the_device_lacks():
    with pytest.raises(Unsupported, match="Tesla T4 has no arithmetic rate for bfloat16"):
        find("t4").rate("bfloat16")
    with pytest.raises(Unsupported, match="no arithmetic rate for int4"):
        find("h100").rate("int4")


def test_import_needs_no_torch():
    code = "import sys, optsd.estimate, optsd.estimate.bounds, optsd.estimate.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
