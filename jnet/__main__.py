"""`python -m jnet` and the command `jnet`.

`jnet train` starts itself once more with the allocator tuned. XLA asks for a step's temporaries anew at each call, and
the C library's defaults hand large blocks back to the system each time: every page is then zeroed again, 0.3 ms a
megabyte. Told otherwise, it keeps them, and in pages of 2 MB instead of 4 kB where the system has them. Threads other
than the first have heaps of 64 MB, which glibc unmaps once empty whatever the trim threshold, unless the heap before
has less than `MALLOC_TOP_PAD_` to spare: with 64 MB it keeps these too. The settings are read when a process starts,
so they must be in its environment before.
"""

import os
import sys

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}


def main() -> None:
    """Run the command line; never shows a traceback for what the user did wrong."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"] and "--no-tune" not in arguments and not {"-h", "--help"} & set(arguments):
        _tune_allocator(verbose="--verbose" in arguments)
    from jnet.cli import run

    sys.exit(run(arguments))


def _tune_allocator(verbose: bool) -> None:
    """Replace this process by itself with `ALLOCATOR` in the environment, unless it is there already."""
    settings = {name: value for name, value in ALLOCATOR.items() if name not in os.environ}
    if not sys.platform.startswith("linux") or not settings:
        return
    if verbose:
        shown = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"allocator tuned: {shown} (--no-tune leaves it as it is)", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})


if __name__ == "__main__":
    main()
