"""Wi-Fi, with two radios that the kernel plays (mac80211_hwsim): the machine's, and one of somebody nearby.

Nearby is a network namespace inside the machine, out of NetworkManager's sight: first a phone that joins the
network which the machine opens for its set-up, then the router of the house.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.image import people
from tests.image.emulator import Emulator
from tests.image.home import Home, flashed
from tests.image.machine import Machine

pytestmark = pytest.mark.image

NOTE = "/run/hob-screen/network.txt"

NEARBY = """
modprobe mac80211_hwsim radios=2
until iw dev | grep -q wlan1; do sleep 1; done
ip netns add nearby
iw phy phy1 set netns name nearby
ip netns exec nearby ip link set lo up
# Before it has an address it must take what comes from anywhere.
for each in all wlan1; do ip netns exec nearby sysctl -qw net.ipv4.conf.$each.rp_filter=0; done
"""

# What a phone does with the name and the password on the machine's screen; it prints what it was given.
PHONE = """
wpa_passphrase '{name}' '{password}' > /run/phone.conf
ip netns exec nearby wpa_supplicant -B -P /run/phone.pid -i wlan1 -c /run/phone.conf >/dev/null
for _ in $(seq 30); do
    ip netns exec nearby iw dev wlan1 link | grep -q Connected && break
    sleep 1
done
ip netns exec nearby iw dev wlan1 link
"""

# A phone's DHCP, as far as it needs to go (RFC 2131), and the first page it is shown.
ASK = """
ip netns exec nearby /opt/hob/bin/python - <<END
import http.client, json, os, socket, struct
hardware = bytes.fromhex("020000000100")
head = struct.pack("!BBBBIHH16s16s192x", 1, 1, 6, 0, 7, 0, 0x8000, b"", hardware)
discover = head + bytes.fromhex("63825363 350101 ff")
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wlan1")
sock.bind(("", 68))
sock.settimeout(20)
sock.sendto(discover, ("255.255.255.255", 67))
address = socket.inet_ntoa(sock.recv(1500)[16:20])
os.system(f"ip addr add {address}/24 dev wlan1")
connection = http.client.HTTPConnection("10.42.0.1", timeout=30)
connection.request("GET", "/", headers={"Accept": "text/html"})
page = connection.getresponse()
print(json.dumps({"address": address, "status": page.status, "to": page.getheader("location")}))
END
"""

ROUTER = """
kill $(cat /run/phone.pid)
sleep 1
ip netns exec nearby ip addr flush dev wlan1
cat > /run/router.conf <<END
ap_scan=2
network={
    ssid="house"
    mode=2
    frequency=2437
    key_mgmt=WPA-PSK
    proto=RSN
    pairwise=CCMP
    psk="twelve loaves of bread"
}
END
ip netns exec nearby wpa_supplicant -B -P /run/router.pid -i wlan1 -c /run/router.conf >/dev/null
ip netns exec nearby ip addr add 192.168.7.1/24 dev wlan1
ip netns exec nearby dnsmasq --conf-file=/dev/null --interface=wlan1 --bind-interfaces --port=0 \
    --dhcp-range=192.168.7.20,192.168.7.30 --pid-file=/run/router-dhcp.pid --dhcp-leasefile=/run/router.leases
"""


@pytest.fixture(scope="module")
def home(
    emulator: Emulator, image: Path, accelerator: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Home]:
    """A freshly flashed machine with two radios, one of them nearby."""
    home = flashed(emulator, image, tmp_path_factory.mktemp("wifi"), accelerator)
    home.on(probe=True).script(NEARBY)
    yield home
    home.kill()


def note(machine: Machine) -> dict[str, str]:
    """Name and password of the set-up network, as the screen tells them, once it is open."""
    told = machine.probe(f"until [ -e {NOTE} ]; do sleep 1; done; cat {NOTE}", 180)
    rows = [line.split(maxsplit=1) for line in told.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in ("Wi-Fi", "password")}


def test_without_a_network_it_opens_its_own(home: Home) -> None:
    """The cable is pulled: somebody nearby joins by what the screen says, and is led to the page."""
    machine = home.machine
    machine.monitor("set_link", name="net", up=False)
    told = note(machine)
    assert told["password"] == people.CODE
    machine.screen(home.folder / "set-up.png")
    linked = machine.script(PHONE.format(name=told["Wi-Fi"], password=told["password"]), 90)
    assert f"SSID: {told['Wi-Fi']}" in linked
    given = json.loads(machine.script(ASK, 90).splitlines()[-1])
    assert given["address"].startswith("10.42.0.")
    assert (given["status"], given["to"]) == (303, "/setup")


def test_the_cable_is_back(home: Home) -> None:
    """Then its own network closes."""
    machine = home.machine
    machine.monitor("set_link", name="net", up=True)
    machine.probe(f"while [ -e {NOTE} ]; do sleep 1; done", 120)
    machine.probe("while iw dev wlan0 info | grep -q 'type AP'; do sleep 1; done", 60)
    machine.wait()


def test_it_joins_the_network_of_the_house(home: Home, chromium: Browser) -> None:
    """From the page: a wrong password is told as such and changes nothing; with the right one it is in."""
    machine = home.machine
    machine.script(ROUTER)
    owner = people.set_up(chromium, machine.url)
    page, network = owner.page, owner.page.locator("#network")

    def join(password: str) -> None:
        page.goto("/device")
        page.get_by_label("Its name", exact=True).fill("house")
        page.get_by_label("Its password").fill(password)
        page.get_by_label("Country, by two letters").fill("DE")
        page.get_by_role("button", name="Join", exact=True).click()

    join("a wrong password")
    owner.look_for("/device", network.filter(has_text="house did not let Hob in: the password is not right."))
    join("twelve loaves of bread")
    owner.look_for("/device", network.filter(has_text="192.168.7.2"))
    expect(network).to_contain_text("Hob joins house whenever it is in reach.")
    page.screenshot(path=home.folder / "joined.png", full_page=True)
    assert "SSID: house" in machine.probe("iw dev wlan0 link")
    owner.close()
