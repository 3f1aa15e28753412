"""Recipes: what a device's image consists of, as data.

A recipe is a TOML file. It may extend another one, by name or by path: tables are merged key by key, a list
adds to the inherited list (an entry `"-NAME"` takes NAME out of it), and any other value replaces the
inherited one. Every key is checked, and an error names the file and the key it stands under.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from builder.compile.targets import parse_target
from builder.errors import RecipeError, UnsupportedError

DEVICES = Path(__file__).parent / "devices"

Architecture = Literal["amd64", "arm64"]
MACHINES: Mapping[Architecture, str] = {"amd64": "x86_64", "arm64": "aarch64"}

LINKER = "binutils"
"""The package of the linker that the compiler needs."""

# Debian policy 5.6.1, with an optional suite to take the package from, as apt spells it.
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(/[a-z-]+)?")
COMPATIBLE = re.compile(r"[a-z0-9][a-z0-9.-]{1,62}")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a recipe; a key that it does not have is an error."""


class Disk(Part, frozen=True, kw_only=True):
    """Sizes of the partitions, in MiB.

    Attributes:
        boot: the FAT partition with the boot loader, the kernels and the owner's `hob.toml`.
        root: each of the two root file systems; an update must fit into it.
        data: what the data partition begins with; it grows to the end of the disk on the first start.
    """

    boot: int = 256
    root: int = 2048
    data: int = 256


class Imager(Part, frozen=True, kw_only=True):
    """What Raspberry Pi Imager shows of the image.

    Attributes:
        name, description, url, icon: as in its list; `icon` is a URL or a path in the image's folder.
        devices: tags of the boards it is offered for; empty for all.
        init_format: how settings made in Imager reach the image.
    """

    name: str = ""
    description: str = ""
    url: str = ""
    icon: str = ""
    devices: list[str] = []
    init_format: Literal["none", "systemd", "cloudinit", "cloudinit-rpi", "rpi-preseed"] = "none"


class Recipe(Part, frozen=True, kw_only=True):
    """One device.

    Attributes:
        name: what the recipe is called; the file's name.
        title: what the device is, for people.
        format: "disk" for an image that boots, else "oci", "deb" or "jetson".
        architectures: Debian's names; all but "oci" and "deb" have exactly one.
        suite, components: where packages come from.
        backports: whether packages may be taken from the suite's backports ("NAME/trixie-backports").
        boot: how it starts; "none" where something else starts it.
        compatible: what an update must be made for; two devices with the same string share their updates.
        kernel: package of the kernel; "" for none.
        packages, firmware: Debian packages, without what they merely recommend.
        build_only: packages whose files are taken out once the image has been put together.
        remove: paths (shell patterns, from the root) that the device does not need.
        cmdline: words for the kernel's command line besides the boot method's own.
        targets: processors (and GPUs) that the models are compiled for, as `hob model compile --target`
            names them.
        gpu: whether the GPU's run-time libraries of TVM are in the image.
        compiler: whether the device can compile libraries itself; 80 MB more to download.
        models: "guide", or folders in MLC's format, relative to the recipe's file.
        settings: the device's `/etc/hob/hob.toml`.
        disk, imager: see there.
    """

    name: str
    title: str
    format: Literal["disk", "oci", "deb", "jetson"] = "disk"
    architectures: list[Architecture]
    suite: Literal["trixie"] = "trixie"
    components: list[str] = []
    backports: bool = False
    boot: Literal["uefi", "pi", "none"] = "none"
    compatible: str = ""
    kernel: str = ""
    packages: list[str] = []
    firmware: list[str] = []
    build_only: list[str] = []
    remove: list[str] = []
    cmdline: list[str] = []
    targets: list[str] = []
    gpu: bool = False
    compiler: bool = False
    models: list[str] = []
    settings: dict[str, Any] = {}
    disk: Disk = Disk()
    imager: Imager = Imager()

    @property
    def architecture(self) -> Architecture:
        """The one architecture of a device."""
        assert len(self.architectures) == 1, "only containers and packages are made for several"
        return self.architectures[0]

    @property
    def wanted(self) -> list[str]:
        """Every Debian package that is asked for by name, sorted."""
        linker = [LINKER] if self.compiler and self.format != "deb" else []  # there it is a dependency
        kernel = [self.kernel] if self.kernel else []
        return sorted({*self.packages, *self.firmware, *kernel, *linker})


def names() -> list[str]:
    """The recipes that come with Hob; files that begin with `_` are only there to be extended."""
    return sorted(path.stem for path in DEVICES.glob("[!_]*.toml"))


def load(name: str) -> Recipe:
    """The recipe of that name, or at that path if it ends in `.toml`.

    Raises:
        RecipeError: it does not exist, is not TOML, or a key is unknown, missing or wrong.
    """
    path = locate(name, Path.cwd())
    layers = read(path, ())
    keys = {key: file for file, table in layers for key in leaves(table)}
    merged: dict[str, Any] = {}
    for _, table in layers:
        merged = merge(merged, table)
    try:
        recipe = msgspec.convert(merged | {"name": path.stem}, Recipe)
    except msgspec.ValidationError as error:
        raise explain(error, path, keys) from error
    for key, problem in problems(recipe):
        raise RecipeError(f"{keys.get(key, path)}: {key}: {problem}")
    return recipe


def locate(name: str, folder: Path) -> Path:
    """The file of a recipe that is named in `folder`."""
    if name.endswith(".toml"):
        path = folder / name
        if not path.is_file():
            raise RecipeError(f"{path} does not exist")
        return path
    path = DEVICES / f"{name}.toml"
    if not path.is_file() or "/" in name:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise RecipeError(f"there is no recipe {name}", hint=f"{hint}There are {', '.join(names())}.")
    return path


def read(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """A recipe's file and those it extends, outermost last, with paths of models made absolute."""
    if path in above:
        raise RecipeError(f"{path}: extends: the recipes extend each other in a circle")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    parent = table.pop("extends", None)
    if "name" in table:
        raise RecipeError(f"{path}: name: a recipe is named after its file")
    if isinstance(table.get("models"), list):
        table["models"] = [model_path(path.parent, entry) for entry in table["models"]]
    if parent is None:
        return [(path, table)]
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends: must be the name or the path of a recipe")
    return [*read(locate(parent, path.parent), (*above, path)), (path, table)]


def model_path(folder: Path, entry: Any) -> Any:
    """An entry of `models`, as an absolute path if it is one."""
    if isinstance(entry, str) and "/" in entry and not entry.startswith("-"):
        return str((folder / entry).resolve())
    return entry


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two layers of a recipe as one."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(value, Mapping):
            result[key] = merge(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, list):
            gone = {entry[1:] for entry in value if isinstance(entry, str) and entry.startswith("-")}
            added = [entry for entry in value if not (isinstance(entry, str) and entry.startswith("-"))]
            kept = [entry for entry in (before if isinstance(before, list) else []) if entry not in added]
            result[key] = [
                entry for entry in [*kept, *added] if not (isinstance(entry, str) and entry in gone)
            ]
        else:
            result[key] = value
    return result


def leaves(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key of a table by its full name, tables included."""
    found = []
    for key, value in table.items():
        found.append(prefix + key)
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{key}.")
    return found


def explain(error: msgspec.ValidationError, path: Path, keys: Mapping[str, Path]) -> RecipeError:
    """An error of the schema in the words of the file: which file, which key, what is wrong."""
    what, _, where = str(error).partition(" - at `$")
    key = re.sub(r"\[\.\.\.\]|\[\d+\]", "", where.strip("`.")).strip(".")
    named = re.match(r"Object (contains unknown|missing required) field `(\w+)`", what)
    if named:
        key = f"{key}.{named[2]}" if key else named[2]
        what = "there is no such key" if "unknown" in named[1] else "is missing"
        fields = {
            "": Recipe.__struct_fields__,
            "disk": Disk.__struct_fields__,
            "imager": Imager.__struct_fields__,
        }
        near = difflib.get_close_matches(named[2], fields.get(key.rpartition(".")[0], ()), 1)
        hint = f"Did you mean {near[0]}?" if near and "no such" in what else ""
        return RecipeError(f"{keys.get(key, path)}: {key}: {what}", hint=hint)
    what = what[:1].lower() + what[1:].replace("`", "")
    return RecipeError(f"{keys.get(key, path)}: {key}: {what}")


def problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What is wrong with a recipe beyond the types of its keys, as pairs of key and problem."""
    found = []
    found += [(key, "is empty") for key in ("architectures", "components") if not getattr(recipe, key)]
    if recipe.format in {"disk", "jetson"} and len(recipe.architectures) > 1:
        found.append(("architectures", f"a recipe of format {recipe.format} has one, this has several"))
    for key in ("packages", "firmware"):
        found += [
            (key, f"{entry} is no name of a package")
            for entry in getattr(recipe, key)
            if not PACKAGE.fullmatch(entry)
        ]
    if recipe.format == "disk":
        if recipe.boot == "none":
            found.append(("boot", 'an image of format "disk" starts by "uefi" or "pi"'))
        if not recipe.kernel:
            found.append(("kernel", 'an image of format "disk" needs one'))
        if not COMPATIBLE.fullmatch(recipe.compatible):
            found.append(("compatible", "must be 2 to 63 lower-case letters, digits, dots and hyphens"))
    for key in Disk.__struct_fields__:
        if not 32 <= getattr(recipe.disk, key) <= 1_000_000:
            found.append((f"disk.{key}", f"{getattr(recipe.disk, key)} MiB is not between 32 and 1000000"))
    for entry in recipe.remove:
        if not entry.startswith("/") or ".." in entry.split("/") or not entry.strip("/*"):
            found.append(("remove", f"{entry} must be a path from the root, and not the root"))
    found += [("targets", problem) for target in recipe.targets if (problem := wrong_target(target, recipe))]
    for model in recipe.models:
        if model != "guide" and not Path(model, "mlc-chat-config.json").is_file():
            found.append(("models", f'{model} is neither "guide" nor a folder with an mlc-chat-config.json'))
    return found


def wrong_target(name: str, recipe: Recipe) -> str:
    """Why a target does not fit the recipe; "" if it does."""
    machines = [MACHINES[architecture] for architecture in recipe.architectures]
    try:
        target = parse_target(name)
    except UnsupportedError as error:
        return str(error)
    if target.arch not in machines:
        return f"{name} is for {target.arch}, and the recipe for {' and '.join(machines)}"
    return ""


def toml(table: Mapping[str, Any], name: str = "") -> str:
    """A table of strings, numbers, truth values, lists and tables of these as TOML; `name` is its own."""
    plain = [f"{key} = {value(entry)}\n" for key, entry in table.items() if not isinstance(entry, Mapping)]
    parts = [
        f"\n[{name}{key}]\n{toml(entry, f'{name}{key}.')}"
        for key, entry in table.items()
        if isinstance(entry, Mapping)
    ]
    return "".join([*plain, *parts])


def value(entry: Any) -> str:
    """One value as TOML, whose strings, numbers, truth values and lists of them are written as in JSON."""
    # JSON escapes what lies beyond the first plane as pairs, which TOML has not; so it stays unescaped.
    return json.dumps(entry, ensure_ascii=False)
