"""How fast this machine reads its memory, which bounds how fast a model writes."""

import ctypes
import mmap
import threading
import time

# The C library compares memory with the widest loads there are, from two places at once. That saturates what
# numpy's reductions leave a fifth of unused, and holds Python's lock no more than they do.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

PER_THREAD = 128 * 2**20


def read_bandwidth(threads: int, *, size: int = PER_THREAD, rounds: int = 8) -> float:
    """GB/s (10⁹ bytes) that `threads` together read from memory: the best of several rounds.

    The best, because whatever else goes on can only take from it. Allocates `size` bytes for each thread:
    together they must exceed the last cache several times.
    """
    areas = [mmap.mmap(-1, size) for _ in range(threads)]
    for area in areas:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            area.madvise(mmap.MADV_HUGEPAGE)  # as the weights have them, where the system gives them
    gate = threading.Barrier(threads + 1)
    workers = [threading.Thread(target=_read, args=(area, size, rounds, gate), daemon=True) for area in areas]
    for worker in workers:
        worker.start()
    times = []
    gate.wait()  # all have touched their memory
    for _ in range(rounds):
        begun = time.perf_counter()
        gate.wait()
        gate.wait()
        times.append(time.perf_counter() - begun)
    for worker in workers:
        worker.join()
    for area in areas:
        area.close()
    return threads * size / min(times) / 1e9


def _read(area: mmap.mmap, size: int, rounds: int, gate: threading.Barrier) -> None:
    """One thread: fill its memory, then read it at every round's start."""
    view = (ctypes.c_char * size).from_buffer(area)
    start, half = ctypes.addressof(view), size // 2
    ctypes.memset(start, 1, size)  # pages that were never written are all one page of zeros
    gate.wait()
    for _ in range(rounds):
        gate.wait()
        _memcmp(start, start + half, half)
        gate.wait()
    del view  # or the area cannot be closed
