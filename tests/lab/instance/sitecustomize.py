"""For every Python of an instance, there is no GPU: `python -m trainer.gpu_probe` is the stand-in beside this
file's place, and nothing else is changed."""

import importlib.abc
import importlib.util
import sys


class _ProbeOfNoGpu(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "trainer.gpu_probe":
            return importlib.util.spec_from_file_location(fullname, "/usr/local/lib/ldlm-lab/gpu_probe.py")
        return None


sys.meta_path.insert(0, _ProbeOfNoGpu())
