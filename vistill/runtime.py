"""Process settings: one thread, and an allocator that keeps big blocks (measured 1.6-2x on tiny models)."""

import contextlib
import ctypes
import os


def use_one_thread() -> None:
    """One intra-op thread: parallel processes beat threads at this size, and the numbers stay the same."""
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)


def keep_large_allocations() -> None:
    """Tell glibc to keep large blocks instead of returning them to the system; elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)
        libc.mallopt(m_top_pad, 64 << 20)


def use_one_thread_on_cpu() -> None:
    """One thread where there is no CUDA device; elsewhere torch's own choice stays."""
    import torch

    if not torch.cuda.is_available():
        use_one_thread()


def quiet_libraries() -> None:
    """No progress bars of other libraries, no telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def prepare_process() -> None:
    """What a process that trains or measures sets first: quiet libraries, one thread, big blocks kept."""
    quiet_libraries()
    use_one_thread_on_cpu()
    keep_large_allocations()
