# What U-Boot does on a Raspberry Pi: choose a slot, forget what was chosen for one boot, start its kernel image.
# The files are written by usr/lib/hob/bootloader on the device. Syntax: docs.u-boot.org, "shell commands".
#
# A kernel image is a program for UEFI, which U-Boot can start; its command line is in it, and which partition is
# its root lies beside it (hob-a.efi.extra.d). Nothing else may be in bootargs: it would replace that line.
setenv part ${devtype} ${devnum}:1
# 64 MiB, above what the firmware and U-Boot itself use on boards of 1 GiB.
setenv at 0x04000000
setenv bootargs
setenv always
setenv once

if load ${part} ${at} slots/always; then env import -t ${at} ${filesize} always; fi
if load ${part} ${at} slots/once; then
    env import -t ${at} ${filesize} once
    fatrm ${part} slots/once
    # A card that cannot forget would try the same slot for ever.
    if test -e ${part} slots/once; then setenv once; fi
fi

setenv order
for slot in ${once} ${always}; do
    if test "${slot}" = a -o "${slot}" = b; then setenv order "${order} ${slot}"; fi
done
# The last two are for a card that lost its files, or whose chosen slot is empty.
for slot in ${order} a b; do
    echo "Hob: slot ${slot}"
    if load ${part} ${at} EFI/Linux/hob-${slot}.efi; then bootefi ${at} ${fdt_addr}; fi
done
echo "Hob: no slot starts; trying again"
sleep 10
reset
