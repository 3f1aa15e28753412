"""The root file system of a device: Debian's and what Hob adds to it, as one tree, settled and sealed.

Everything that a fresh Debian does on its first start, because it can write to its root, is done here
    instead: users are made, units enabled, bytecode compiled. What was only needed to get this far is taken
    out.
"""

from collections.abc import Sequence
from pathlib import Path

from builder.image.bytecode import precompile
from builder.image.rootfs import unpack
from builder.image.toolbox import Toolbox

# $1 the tree, $2 a layer.
ADD = r"""
# The layer's owner is whoever built it; on the device all of it is root's.
tar --create --directory="$2" --sort=name --owner=0 --group=0 --numeric-owner --exclude=./.inputs.json . |
    tar --extract --directory="$1" --numeric-owner --preserve-permissions --keep-directory-symlink --overwrite
"""

# $1 the tree, then the packages that are taken out again.
SETTLE = r"""
tree=$1
shift
systemd-sysusers --root="$tree"
systemctl --root="$tree" --quiet preset-all
systemctl --root="$tree" --quiet --global preset-all

# No one logs in with a password: there is none, and "*" matches none.
sed -i 's/^root:[^:]*:/root:*:/' "$tree/etc/shadow"
rm -f "$tree"/etc/*-
# Empty and not absent: systemd then takes the machine for one that starts for the first time, and says so
# once.
: > "$tree/etc/machine-id"
chmod 0444 "$tree/etc/machine-id"
[ -e "$tree/etc/hostname" ] || echo hob > "$tree/etc/hostname"
ln -sfn ../run/NetworkManager/resolv.conf "$tree/etc/resolv.conf"

# NetworkManager takes a connection only from a file that nobody else can read, and Git keeps no such mode.
find "$tree/usr/lib/NetworkManager/system-connections" -type f -exec chmod 0600 {} + 2>/dev/null || :

# Files of packages that were needed up to here; folders go if nothing else is in them.
for package in "$@"; do
    for list in "$tree/var/lib/dpkg/info/$package.list" "$tree/var/lib/dpkg/info/$package":*.list; do
        [ -e "$list" ] || continue
        while read -r path; do
            if [ -L "$tree$path" ] || [ -f "$tree$path" ]; then rm -f "$tree$path"; fi
        done < "$list"
        sort -r "$list" | while read -r path; do
            if [ -d "$tree$path" ] && [ ! -L "$tree$path" ]; then
                rmdir --ignore-fail-on-non-empty "$tree$path" 2>/dev/null || :
            fi
        done
    done
done

# Names a folder of the machine that built it.
rm -rf "$tree/etc/apt"
# These are mounted over; what must be in them is made on the device.
for folder in boot var run tmp dev proc sys root home mnt; do
    mkdir -p "$tree/$folder"
    find "$tree/$folder" -mindepth 1 -delete
done
rm -f "$tree"/vmlinuz* "$tree"/initrd.img*
# The processor's microcode is in the initramfs, where alone it can be loaded in time.
rm -rf "$tree"/usr/lib/firmware/intel-ucode "$tree"/usr/lib/firmware/amd-ucode
# Nobody on the device becomes someone else by starting a program.
find "$tree" -xdev -type f -perm /6000 -exec chmod ug-s {} +
# Bytecode that was made with the times of its sources; it is made anew below.
find "$tree/usr" -xdev -type d -name __pycache__ -not -path "$tree/usr/share/hob/*" -not -path "$tree/opt/*" \
    -prune -exec rm -rf {} +
"""


def merge(
    toolbox: Toolbox, base: Path, layers: Sequence[Path], tree: Path, *, build_only: Sequence[str]
) -> None:
    """Make `tree`, which must not exist, from the base root file system and what is added to it.

    Args:
        toolbox: for its systemd and Python, of the same versions as the device's.
        base: folder of `rootfs.build`.
        layers: folders whose files are laid over it, later ones over earlier ones.
        build_only: packages whose files the device does not need.

    Raises:
        CommandError: a user cannot be made, a unit is wrong.
    """
    unpack(toolbox, base, tree)
    shell = ("bash", "-euo", "pipefail", "-c")
    for layer in layers:
        toolbox.run([*shell, ADD, "-", tree, layer], read=[layer], write=[tree])
    toolbox.run([*shell, SETTLE, "-", tree, *build_only], write=[tree])
    # Debian's own bytecode is made with the times of its sources, which are all alike in the sealed image.
    for folder in ("usr/lib/python3", "usr/lib/python3.13"):
        if (tree / folder).is_dir():
            precompile(tree / folder, f"/{folder}", toolbox)
