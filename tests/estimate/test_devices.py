import subprocess
import sys

import pytest

from optsd.errors import BadInput, Unsupported
from optsd.estimate.devices import DEFAULT, DEVICES, find


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_device_names_its_source(device):
    assert device.source
    assert find(device.name.upper()) is device
    if device.has_data_sheet:
        assert device.memory_bytes > 10**10
        assert 3e11 <= device.bytes_s < 1e13
        assert (
            device.rate("float32")
            < device.rate("float16")
            < device.rate("int8")
            < device.operations_s.get("int4", 1e18)
        )


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
