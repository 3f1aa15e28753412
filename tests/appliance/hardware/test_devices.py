"""The order of devices: whom a machine offers, what settings change, and the reasons given."""

import json

import pytest

from appliance.domain import Gpu, Hardware
from appliance.hardware.describe import describe
from appliance.hardware.devices import Candidate, candidates
from tests.appliance.hardware.machines import FOLDER, MACHINES, recording, room


def machine(name: str) -> Hardware:
    """A recorded machine, understood."""
    return describe(recording(name), room(name))


def with_gpu(**gpu: object) -> Hardware:
    """A PC with this graphics processor."""
    return machine("cloud-vm").model_copy(update={"gpus": (Gpu.model_validate({"name": "card", **gpu}),)})


def verdict(hardware: Hardware, kind: str, *wanted: str) -> Candidate:
    """What is said of one kind of device."""
    return next(one for one in candidates(hardware, wanted) if one.kind == kind)


@pytest.mark.parametrize("name", MACHINES)
def test_recorded_machines(name: str) -> None:
    """Each recording yields the order and the reasons that were checked by hand."""
    expected = json.loads((FOLDER / name / "expected.json").read_text())["candidates"]
    found = [one.model_dump(include={"target", "usable", "reason"}) for one in candidates(machine(name))]
    assert found == expected


@pytest.mark.parametrize("name", MACHINES)
def test_every_kind_has_a_verdict(name: str) -> None:
    """Whatever is wanted, every kind is listed with a reason, and those to be tried come first."""
    for wanted in ((), ("cpu",), ("vulkan", "cpu"), ("cuda-sm_87", "cpu")):
        found = candidates(machine(name), wanted)
        assert {one.kind for one in found} == {"cuda", "metal", "vulkan", "cpu"}
        assert all(one.reason for one in found)
        usable = [one.usable for one in found]
        assert usable == sorted(usable, reverse=True)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("wanted", [(), ("vulkan", "cpu")])
def test_neither_v3d_nor_imitations(name: str, wanted: tuple[str, ...]) -> None:
    """Vulkan on a Raspberry Pi's GPU or on the CPU is never chosen, not even when Vulkan is asked for."""
    chosen = verdict(machine(name), "vulkan", *wanted)
    assert not chosen.usable or not any(word in chosen.name for word in ("V3D", "llvmpipe"))


def test_an_order_of_one_s_own() -> None:
    """The setting's order is the order of trial, and what it leaves out is not tried."""
    found = candidates(machine("pc-rtx4090"), ("cpu", "cuda"))
    assert [one.target for one in found if one.usable] == ["cpu", "cuda-sm_89"]
    assert "left out by the setting" in verdict(machine("pc-rtx4090"), "vulkan", "cpu", "cuda").reason


def test_a_target_by_name_is_tried_unasked() -> None:
    """Who names CUDA's target outright has it tried on a machine that shows no GPU."""
    found = candidates(machine("cloud-vm"), ("cuda-sm_87", "cpu"))
    assert [one.target for one in found if one.usable] == ["cuda-sm_87", "cpu"]


def test_an_unknown_gpu_is_used_when_asked_for() -> None:
    """Intel's small GPU is left alone by itself, and tried by the setting."""
    assert not verdict(machine("n100"), "vulkan").usable
    assert verdict(machine("n100"), "vulkan", "vulkan", "cpu").usable


@pytest.mark.parametrize(
    ("gpu", "usable", "word"),
    [
        ({"vendor": "amd", "kind": "discrete", "vulkan": "1.3.255"}, True, "card"),
        ({"vendor": "nvidia", "kind": "discrete", "vulkan": "1.2.175"}, False, "1.2"),
        ({"vendor": "nvidia", "kind": "integrated", "vulkan": "1.3.1", "name": "Orin"}, True, "faster"),
        ({"vendor": "amd", "kind": "integrated", "vulkan": "1.3.1", "name": "AMD 780M"}, False, "shares"),
        ({"vendor": "arm", "kind": "integrated", "vulkan": "1.3.1", "name": "Mali-G610"}, False, "shares"),
        ({"vendor": "amd", "name": "AMD graphics 1002:744c"}, False, "vulkaninfo"),
    ],
)
def test_vulkan(gpu: dict[str, object], usable: bool, word: str) -> None:
    """Cards of a present age and integrated GPUs known to be faster are used; the others are told why not."""
    chosen = verdict(with_gpu(**gpu), "vulkan")
    assert chosen.usable is usable
    assert word in chosen.reason


def test_an_nvidia_card_without_its_driver() -> None:
    """Nouveau has no CUDA; a card whose driver does not answer is named with the next step."""
    nouveau = verdict(with_gpu(vendor="nvidia", driver="nouveau"), "cuda")
    assert not nouveau.usable
    assert "nouveau" in nouveau.reason
    silent = verdict(with_gpu(vendor="nvidia"), "cuda")
    assert "does not answer" in silent.reason
    assert "nvidia-smi" in silent.hint


def test_metal_needs_apple_s_gpu() -> None:
    """Another maker's card in a Mac is left alone."""
    assert not verdict(with_gpu(metal=True), "metal").usable
