import subprocess
import sys

HEAVY = ("torch", "captum", "omegaconf", "lightning", "webdataset", "matplotlib", "PIL", "zstandard")


def test_importing_the_store_loads_numpy_and_the_standard_library_only():
    code = f"import sys, mapstack.store; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
