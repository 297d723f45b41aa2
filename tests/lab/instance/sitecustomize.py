"""For every Python of an instance: it has a CPU build of torch and no GPU, whatever its nvidia-smi says.

`python -m trainer.gpu_probe` is a stand-in that finds nothing wrong, and DeepSpeed, which trainer.node sends
to the GPUs that it sees, computes on the CPU. Nothing else is changed.
"""

import importlib.abc
import importlib.util
import os
import sys


class _ProbeOfNoGpu(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "trainer.gpu_probe":
            return importlib.util.spec_from_file_location(fullname, "/usr/local/lib/ldlm-lab/gpu_probe.py")
        return None


sys.meta_path.insert(0, _ProbeOfNoGpu())
os.environ["DS_ACCELERATOR"] = "cpu"
