# SPDX-License-Identifier: Apache-2.0
"""What is made of messages that people reported, as loaders, Python and CUDA wrote them."""

from __future__ import annotations

import pytest

from ansible.module_utils.firstlight.planning import wheel_failures

SO = "ImportError: /opt/e/lib/python3.12/site-packages/flash_attn_2_cuda.cpython-312-x86_64-linux" \
    "-gnu.so: undefined symbol: "
REPORTED = [
    # Dao-AILab/flash-attention#723, #1832, #1612, gpt-neox#1079: a function of another torch.
    (SO + "_ZN3c104cuda9SetDeviceEi", "built for another torch"),
    (SO + "_ZN3c104cuda9SetDeviceEa", "built for another torch"),
    (SO + "_ZN3c104cuda20CUDACachingAllocator9allocatorE", "built for another torch"),
    (SO + "_ZN2at4_ops9_pad_enum4callERKNS_6TensorEN3c108ArrayRefINS5_6SymIntEEElNS5_8optionalIdEE",
     "built for another torch"),
    (SO + "_ZNK3c1011StorageImpl27throw_data_ptr_access_errorEv", "built for another torch"),
    (SO + "_ZTIN3c105ErrorE", "built for another torch"),
    # #975, #940, #1691 and #1644, flashinfer#911: the two C++ ABIs.
    (SO + "_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE"
     "E", "the new C++ ABI where this torch has the old"),
    (SO + "_ZN3c105ErrorC2ENS_14SourceLocationESs", "the old C++ ABI and this torch has the new"),
    ("ImportError: flashinfer_kernels.abi3.so: undefined symbol: "
     "_ZN5torch3jit17parseSchemaOrNameERKSsb", "the old C++ ABI"),
    (SO + "aoti_torch_get_current_cuda_blas_handle", "a newer torch"),
    (SO + "torch_call_dispatcher", "a newer torch"),
    (SO + "_PyThreadState_UncheckedGet", "another Python"),
    ("ImportError: /opt/e/lib/python3.11/site-packages/torch/lib/../../nvidia/cusparse/lib/"
     "libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink.so.12",
     "CUDA libraries of two versions are mixed"),
    ("ImportError: /opt/e/lib/python3.12/site-packages/torch/lib/libtorch_cuda.so: undefined "
     "symbol: ncclCommWindowRegister", "older NCCL"),
    ("ImportError: libc10_cuda.so: undefined symbol: cudaGetDriverEntryPointByVersion, version "
     "libcudart.so.12", "another version of a CUDA library"),
    # #631, #728: built for another CUDA.
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
     "built for CUDA 12,"),
    ("ImportError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
     "built for CUDA 11,"),
    ("OSError: libnvrtc.so.13: cannot open shared object file: No such file or directory",
     "built for CUDA 13,"),
    ("ImportError: libcudnn.so.8: cannot open shared object file: No such file or directory",
     "cuDNN 8"),
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
     "library of the NVIDIA driver is not found"),
    # #1644 again, without torch before it; and a torch without GPUs.
    ("ImportError: libc10.so: cannot open shared object file: No such file or directory",
     "needs torch"),
    ("ImportError: libc10_cuda.so: cannot open shared object file: No such file or directory",
     "a torch with GPU support"),
    ("ImportError: libtorch_cuda_cu.so: cannot open shared object file: No such file or directory",
     "a torch with GPU support"),
    ("ImportError: libnuma.so.1: cannot open shared object file: No such file or directory",
     "the library libnuma.so.1, which it needs, is not found"),
    # #2225, #1762, #1708.
    ("ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by "
     "/lib/python3.12/site-packages/flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so)",
     "a newer glibc than this host has (GLIBC_2.32)"),
    ("ImportError: /usr/lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.30' not found "
     "(required by /opt/e/lib/python3.10/site-packages/x.so)", "libstdc++ than is found here "
     "(GLIBCXX_3.4.30)"),
    ("ImportError: /opt/e/x.so: invalid ELF header", "damaged"),
    ("ImportError: /opt/e/x.so: file too short", "damaged"),
    ("OSError: /opt/e/libx.so: wrong ELF class: ELFCLASS32", "another kind of machine"),
    ("ImportError: /opt/e/libgomp-d22c30c5.so.1.0.0: cannot allocate memory in static TLS block",
     "loaded earlier"),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device\nCUDA "
     "kernel errors might be asynchronously reported", "no kernels for this GPU"),
    ("RuntimeError: CUDA error: invalid device function", "no kernels for this GPU"),
    ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "too old for it"),
    ("RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
     "driver is too old"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
     "too old for this torch"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA "
     "GPU", "no NVIDIA driver"),
    ("RuntimeError: operator torchvision::nms does not exist", "compiled part was not loaded"),
    ("ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from "
     "C header, got 88 from PyObject", "another NumPy"),
    ("ModuleNotFoundError: No module named 'einops'", "it needs einops,"),
    ("ImportError: cannot import name 'custom_op' from 'torch.library' (/opt/e/torch/library.py)",
     "another torch"),
    ("AttributeError: module 'torch.library' has no attribute 'custom_op'", "another torch"),
]
BUSY = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total "
     "capacity of 139.81 GiB of which 1.00 MiB is free.", "no memory free"),
    ("RuntimeError: CUDA error: out of memory", "no memory free"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     "no memory free"),
    ("torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
     "compute mode is exclusive"),
    ("RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable",
     "compute mode is exclusive"),
    ("RuntimeError: No CUDA GPUs are available", "no GPU can be seen"),
    ("RuntimeError: CUDA error: no CUDA-capable device is detected", "no GPU can be seen"),
    ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet "
     "initialized", "nvidia-fabricmanager"),
]


@pytest.mark.parametrize(("message", "wanted"), REPORTED + BUSY)
def test_a_message_is_explained(message, wanted):
    assert wanted in wheel_failures.explained([message])


@pytest.mark.parametrize(("message", "wanted"), BUSY)
def test_a_gpu_in_use_is_told_apart(message, wanted):
    assert wanted in wheel_failures.unusable([message])


@pytest.mark.parametrize("message", [message for message, _ in REPORTED])
def test_what_is_of_the_package_is_no_gpu_in_use(message):
    assert wheel_failures.unusable([message]) == ""


def test_what_led_to_it_is_looked_at_too():
    assert "CUDA 12" in wheel_failures.explained(
        ["RuntimeError: Failed to import modeling_x", *(one for one, _ in REPORTED
                                                        if "libcudart.so.12:" in one)])


@pytest.mark.parametrize("message", ["", "ValueError: x", "ImportError: it is Tuesday"])
def test_what_is_not_known_is_not_explained(message):
    assert wheel_failures.explained([message]) == ""
    assert wheel_failures.explained([]) == ""


def test_a_message_without_an_end_takes_no_time():
    hostile = "undefined symbol: _ZN3c10" * 4000 + "St7" * 100000
    assert wheel_failures.explained([hostile])
