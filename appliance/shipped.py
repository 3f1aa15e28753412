"""What came with Hob and its system, and is only read: the built-in guide, other models, compiled libraries.

SYSTEM_DIR/models/NAME/    MLC directories
SYSTEM_DIR/libraries/      libraries compiled for the processors that the system is made for
"""

import logging
from pathlib import Path

import builder
from builder.compile import Kernels, find_library, has_compiler, parse_target, runnable
from builder.compile.mlc import CONFIG
from builder.errors import BuildError, StaleLibraryError

log = logging.getLogger(__name__)

GUIDE = "hob-guide"
GUIDE_DIRECTORY = Path(builder.__file__).parent / "guide" / "model"


class Shipped:
    """The models and libraries of one system folder, and the guide of Hob's own package."""

    def __init__(self, folder: Path) -> None:
        """Look in `folder`, which need not exist."""
        self._models = folder / "models"
        self._libraries = folder / "libraries"

    def directories(self) -> dict[str, Path]:
        """Directories of models by name, the guide first."""
        found = {GUIDE: GUIDE_DIRECTORY} if GUIDE_DIRECTORY.is_dir() else {}
        for config in sorted(self._models.glob(f"*/{CONFIG}")):
            found.setdefault(config.parent.name, config.parent)
        return found

    def library(self, directory: Path, target: str, kernels: Kernels) -> Path | None:
        """The library that came for the model in `directory`; None where none did.

        Where this Hob has no compiler, one for a lesser kind of this processor will do.
        """
        try:
            targets = [parse_target(target)] if has_compiler() else list(runnable(target))
            for one in targets:
                try:
                    if path := find_library(directory, self._libraries, target=one, kernels=kernels):
                        return path
                except StaleLibraryError as error:
                    log.warning("%s", error)
        except BuildError as error:  # whoever compiles the model meets the same, and says it
            log.debug("no library is looked for: %s", error)
        return None
