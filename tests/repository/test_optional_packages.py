"""What is said where an optional package is not installed: a real process that cannot import it."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILD = "from uotft.models import model_io; model_io.build({'name': 'timm'}, 2)"
DASK = "from uotft.runs import scheduler; scheduler._connected('tcp://127.0.0.1:8786')"
EXPORT = "from uotft.models import export; export.to_onnx(None, None)"


@pytest.mark.parametrize(
    ("package", "code", "extra"),
    [("timm", BUILD, "timm"), ("onnxscript", EXPORT, "onnx"), ("distributed", DASK, "dask")],
)
def test_a_missing_extra_is_named(package: str, code: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("uotft.core.errors.UserError")
    assert f"pip install 'uotft[{extra}]'" in last
