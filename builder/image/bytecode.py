"""Bytecode beside Python's sources, so that a read-only device starts as fast as one that may write it."""

from pathlib import Path

from builder.image.toolbox import Toolbox


def precompile(folder: Path, home: str, toolbox: Toolbox) -> None:
    """Compile every module under `folder`, which will lie at `home`, with Debian's Python.

    The device takes the bytecode on trust ("unchecked-hash", PEP 552): sources and bytecode are in one sealed
    image, so that looking at the time of each source at each start would find nothing. One process, with
    hashes of text that do not vary, so that two runs give the same bytes.

    Raises:
        CommandError: a module does not compile.
    """
    toolbox.run(
        [
            *("python3", "-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode", "unchecked-hash"),
            # Tracebacks name the file on the device.
            *("-s", folder.absolute(), "-p", home, folder.absolute()),
        ],
        write=[folder],
        env={"PYTHONHASHSEED": "0"},
    )
