# SPDX-License-Identifier: Apache-2.0
"""What loaders, Python and CUDA say of a package that does not work, in words."""

from __future__ import annotations

import re
from typing import Iterable, List, Tuple

Row = Tuple["re.Pattern[str]", str]

# Texts are looked at up to here: whoever wrote a package wrote them.
MOST = 20000


def _rows(*rows: Tuple[str, str]) -> List[Row]:
    return [(re.compile(pattern), words) for pattern, words in rows]


_CUDA_LIBRARIES = (
    "cudart|cublas|cublasLt|cufft|cufftw|curand|cusolver|cusparse|cupti|nvrtc|nvJitLink|nvToolsExt"
    "|nvrtc-builtins|cufile|npp[a-z]{1,5}|nvjpeg")
# How C++ writes names of c10, at, torch and caffe2, whatever they are: functions, types, tables.
_OF_TORCH = r"_Z[A-Z]{0,4}(?:3c10|2at|5torch|6caffe2)"

_EXPLAINED = _rows(
    (r"undefined symbol: (?P<symbol>_ZN3c10[A-Za-z0-9_]{0,200}St7__cxx11[A-Za-z0-9_]{0,400})",
     "it was built for another torch, or with the new C++ ABI where this torch has the old"),
    (r"undefined symbol: (?P<symbol>" + _OF_TORCH + r"[A-Za-z0-9_]{0,400}E(?:RK)?Ss)",
     "it was built with the old C++ ABI and this torch has the new, or for another torch"),
    (r"undefined symbol: (?P<symbol>" + _OF_TORCH + ")",
     "it was built for another torch: a function of it is not in this one"),
    (r"undefined symbol: (?P<symbol>(?:aoti_)?torch_[a-z]|THP[A-Z])",
     "it was built for a newer torch: a function of it is not in this one"),
    (r"undefined symbol: (?P<symbol>__nvJitLink\w{1,60})",
     "CUDA libraries of two versions are mixed: an older libnvJitLink is found first; look at "
     "LD_LIBRARY_PATH"),
    (r"undefined symbol: (?P<symbol>nccl[A-Z]\w{1,60})",
     "an older NCCL than torch was built with is found first; look at LD_LIBRARY_PATH"),
    (r"undefined symbol: (?P<symbol>(?:cuda|cublas|cudnn|cusparse|cufft|curand|nvrtc)[A-Z])",
     "another version of a CUDA library than it was built with is found first; look at "
     "LD_LIBRARY_PATH"),
    (r"undefined symbol: (?P<symbol>_?Py[A-Z_]\w{1,80})", "it was built for another Python"),
    (r"libcuda\.so\.1: cannot open shared object file",
     "the library of the NVIDIA driver is not found: there is no driver on this host, or the "
     "loader does not know where (playbooks/doctor.yml says which)"),
    (r"libcudnn[a-z_]{0,30}\.so\.(?P<major>\d{1,3}): cannot open shared object file",
     "it was built for cuDNN %(major)s, which is not in this environment"),
    (r"lib(?:" + _CUDA_LIBRARIES + r")\.so\.(?P<major>\d{1,3})[\d.]{0,20}: cannot open shared "
     "object file",
     "it was built for CUDA %(major)s, whose libraries are not in this environment: a wheel for "
     "the CUDA of this torch is needed"),
    (r"lib(?:c10_cuda|torch_cuda\w{0,10}|c10_hip|torch_hip)\.so: cannot open shared object file",
     "it was built for a torch with GPU support, and this torch has none or is of another build"),
    (r"lib(?:c10|torch|torch_cpu|torch_python)\.so: cannot open shared object file",
     "it needs torch, which is not there or was not imported first"),
    (r"(?P<library>lib[\w.+-]{1,80}\.so[\d.]{0,20}): cannot open shared object file",
     "the library %(library)s, which it needs, is not found on this host"),
    (r"version `(?P<version>GLIBC_[\d.]{1,12})' not found",
     "it needs a newer glibc than this host has (%(version)s): a wheel for an older one is needed, "
     "or a newer system"),
    (r"version `(?P<version>(?:GLIBCXX|CXXABI)_[\d.]{1,12})' not found",
     "it needs a newer libstdc++ than is found here (%(version)s)"),
    (r"invalid ELF header|file too short|ELF load command|ELF file's phentsize",
     "a file of it is damaged"),
    (r"wrong ELF class|cannot open shared object file: Exec format|ELF file (?:OS|data)",
     "it was built for another kind of machine"),
    (r"cannot allocate memory in static TLS block",
     "a library of it must be loaded earlier than others: there is no room for its thread-local "
     "data any more"),
    (r"no kernel image is available for execution|invalid device function",
     "it has no kernels for this GPU"),
    (r"FlashAttention only supports Ampere GPUs or newer",
     "this GPU is too old for it: it needs compute capability 8.0"),
    (r"PTX was compiled with an unsupported toolchain|CUDA driver version is insufficient",
     "the NVIDIA driver is too old for the CUDA it was built with"),
    (r"NVIDIA driver on your system is too old", "the NVIDIA driver is too old for this torch"),
    (r"Found no NVIDIA driver", "this host has no NVIDIA driver"),
    (r"operator (?P<operator>\w{1,60}::\w{1,60}) does not exist",
     "its compiled part was not loaded, which is so where it was built for another torch"),
    (r"compiled using NumPy 1\.x cannot be run|numpy\.dtype size changed|"
     r"numpy\.core\.multiarray failed to import|_ARRAY_API not found",
     "it, or what it imports, was built for another NumPy"),
    (r"No module named '(?P<module>[\w.]{1,100})'",
     "it needs %(module)s, which is not installed in this environment"),
    (r"cannot import name '\w{1,100}' from '(?:partially initialized module ')?torch|"
     r"module 'torch[\w.]{0,100}' has no attribute",
     "it was written for another torch"),
)

_UNUSABLE = _rows(
    (r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
     r"cudaErrorMemoryAllocation",
     "the GPU has no memory free"),
    (r"devices?(?:\(s\))? (?:is/)?are busy or unavailable",
     "somebody else has the GPU to himself (its compute mode is exclusive)"),
    (r"No CUDA GPUs are available|no CUDA-capable device is detected", "no GPU can be seen"),
    (r"system not yet initialized", "the GPUs are not ready (nvidia-fabricmanager does not run)"),
    (r"MPS (?:server is not ready|client failed|client terminated)|"
     r"connect to the MPS control daemon", "the MPS daemon of the GPU does not answer"),
)


def explained(said: Iterable[str]) -> str:
    """A few words on the first of these messages that is known; empty where none is.

    :param said: messages of exceptions, the one that was raised and then what led to it.
    """
    return _first(said, _EXPLAINED + _UNUSABLE)


def unusable(said: Iterable[str]) -> str:
    """Why a GPU could not be used just then, which says nothing of the package; else empty.

    :param said: as for :func:`explained`.
    """
    return _first(said, _UNUSABLE)


def _first(said: Iterable[str], rows: List[Row]) -> str:
    for text in said:
        for pattern, words in rows:
            found = pattern.search(text[:MOST])
            if found:
                return words % found.groupdict()
    return ""


SIGNALS = {
    "SIGILL": "an instruction that this CPU does not have, or a damaged file",
    "SIGKILL": "somebody killed it; where memory was short, the kernel did (see dmesg)",
    "SIGSEGV": "a crash in compiled code",
    "SIGABRT": "compiled code gave up",
    "SIGBUS": "a file that was cut while it was in use, or a full /dev/shm",
    "SIGFPE": "a division by zero in compiled code",
    "SIGSYS": "a system call that is forbidden here",
}
"""What it means when a process ends by them."""
