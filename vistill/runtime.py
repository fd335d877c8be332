"""Process settings: one thread, and an allocator that keeps big blocks (measured 1.6-2x on tiny models)."""

import contextlib
import ctypes
import os


def use_one_thread() -> None:
    """One intra-op thread: parallel processes beat threads at this size, and the numbers stay the same."""
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)


def keep_big_blocks() -> None:
    """Tell glibc to keep large blocks instead of returning them to the system; elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)
        libc.mallopt(m_top_pad, 64 << 20)
