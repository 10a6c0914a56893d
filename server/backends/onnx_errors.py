"""From what onnxruntime says when it fails to what a caller may read. **Pure.** Floor 2, beside its one user.

onnxruntime's texts carry source locations, absolute paths and, on CUDA, the host's name; none of that leaves the server.
Never decides what happens next: it only says whether a failure can be survived.
"""

import re
from pathlib import Path

_LONGEST_CHARACTERS = 500
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_LOADING = re.compile(r"Load model from .*? failed:\s*")
_LOCATION = re.compile(r"/\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ .*?\) (?=\S)")
_SHORT_LOCATION = re.compile(r"\b\w+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ \w+ ")
_CUDA_TAIL = re.compile(r"\s*; GPU=.*")
# a path in single quotes is a node's name (exporters call them '/layer1/Conv'), not a file of this machine
_PATH = re.compile(r"(?<![\w.'])/(?:[\w.+-]+/)+([\w.+-]*)")

_DEVICE_ERROR = re.compile(
    r"CUDA error|CUDA failure|cudaError|CUBLAS (?:error|failure)|CUDNN (?:error|failure)|CUBLAS_STATUS_|CUDNN_STATUS_"
    r"|device[- ](?:lost|removed)|GPU is lost",
    re.IGNORECASE,
)
# errors of one call that leave the CUDA context usable: too little memory, or arguments a kernel does not take
_PASSING = re.compile(
    r"out of memory|memory allocation|ALLOC_FAILED|NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE|invalid argument"
    r"|invalid configuration|too many resources requested",
    re.IGNORECASE,
)

_TOO_LITTLE_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|memory allocation|ALLOC_FAILED|smaller than requested bytes", re.IGNORECASE
)


def reason(text: str, folder: Path) -> str:
    """The first line of an onnxruntime error, without status codes, source locations, or paths of this machine.

    >>> reason("[ONNXRuntimeError] : 1 : FAIL : Data path does not exist: \\"/models/m/1/w.bin\\"", Path("/models/m/1"))
    'Data path does not exist: "w.bin"'
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = _LOADING.sub("", _STATUS.sub("", line))
    line = _SHORT_LOCATION.sub("", _LOCATION.sub("", line))
    line = _CUDA_TAIL.sub("", line)
    line = line.replace(f"{folder}/", "").replace(str(folder), "the version's folder")
    line = _PATH.sub(r"\1", line).strip()
    return line[:_LONGEST_CHARACTERS] or "onnxruntime gave no reason"


def is_fatal(text: str) -> bool:
    """Whether the device can execute nothing any more: a CUDA error is sticky unless it is known to pass.

    Source: the CUDA runtime's "cudaErrorIllegalAddress ... any further CUDA work will return the same error".

    >>> is_fatal("CUDA failure 700: an illegal memory access was encountered"), is_fatal("CUDA failure 2: out of memory")
    (True, False)
    """
    return bool(_DEVICE_ERROR.search(text)) and not _PASSING.search(text)


def is_out_of_memory(text: str) -> bool:
    """Whether a smaller batch might have succeeded: the device, or the arena that it may have, was full.

    >>> is_out_of_memory("Available memory of 512 is smaller than requested bytes of 4096")
    True
    """
    return bool(_TOO_LITTLE_MEMORY.search(text))
