"""The system page: its texts, and the page itself."""

from datetime import UTC, datetime

import httpx2
import pytest

from appliance.domain import Hardware
from appliance.hardware.describe import describe
from appliance.hardware.devices import candidates
from appliance.hardware.trials import Trials
from appliance.overview import EngineState, Failure, Overview, Room, Speeds, judge
from appliance.store import Speed
from tests.appliance.hardware.machines import recording, room
from tests.service import MODEL
from tests.webui.site import Site
from webui import machine
from webui.pages import Fact

ORIN = describe(recording("orin-nano"), room("orin-nano"))
MEASURED = Speeds(
    tier="medium",
    fluent=1.42,
    date=1_770_000_000.0,
    target="cpu",
    bandwidth=9.96,
    model="hob-guide",
    prefill=6543.2,
    decode=987.6,
)


def overview(hardware: Hardware = ORIN, **changes: object) -> Overview:
    """A Jetson on which CUDA failed and the processor answers."""
    trials = Trials()
    trials.failed("cuda-sm_87", "llama", "nvcc is missing", "Install it.")
    engine = EngineState(
        kind="native",
        status="ok",
        reason="",
        model="llama",
        target="cpu",
        memory=600_000_000,
        running=0,
        waiting=0,
    )
    return Overview(
        version="0.1.0",
        uptime=90_000.0,
        hardware=hardware,
        engine=engine,
        devices=tuple(judge(one, trials, engine) for one in candidates(hardware)),
        failures=(Failure(model="llama", target="cuda-sm_87", reason="nvcc is missing", hint="Install it."),),
        memory=Room(total=8_000_000_000, available=5_000_000_000),
        disk=Room(total=64_000_000_000, available=32_000_000_000, folder="/var/lib/hob"),
        speed=MEASURED,
        answers=(Speed("llama", 3, 812.0, 18.25), Speed("tiny", 1, None, 5.0)),
    ).model_copy(update=changes)


def test_the_machine() -> None:
    """Board, processor, graphics without imitations, memory and disk; a container's bound is named."""
    assert list(machine.machine(overview())) == [
        Fact("Machine", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"),
        Fact("Processor", "Cortex-A78AE, 6 cores"),
        Fact("Graphics", "Orin (nvgpu)"),
        Fact("Memory", "5.0 GB free of 8.0 GB"),
        Fact("Disk", "32.0 GB free of 64.0 GB, under /var/lib/hob"),
    ]
    pi = describe(recording("pi4"), room("pi4"))
    facts = machine.machine(overview(pi, memory=Room(total=10**9, available=10**8, limited=True)))
    texts = {fact.name: fact.text for fact in facts}
    assert texts["Graphics"] == "V3D 4.2"
    assert "container" in texts["Memory"]


def test_devices() -> None:
    """Each device has its state, and one that failed the reason of its last failure."""
    rows = {row.kind: row for row in map(machine.device, overview().devices)}
    assert (rows["CUDA"].state, rows["CUDA"].reason) == ("failed", "Does not run llama: nvcc is missing.")
    assert rows["CUDA"].hint == "Install it."
    assert (rows["Processor"].state, rows["Processor"].reason) == ("in use", "Runs every model.")
    assert rows["Vulkan"].state == "ready"
    assert rows["Metal"].state == "left out"
    assert list(machine.failures(overview())) == []
    other = Failure(model="qwen", target="cuda-sm_87", reason="no memory", hint="")
    assert list(machine.failures(overview(failures=(other,)))) == ["qwen on cuda-sm_87: no memory"]


def test_speed() -> None:
    """The tier as a sentence; nothing while it is not known."""
    assert machine.speed(MEASURED).startswith("Medium: models of up to about 1.4 billion weights")
    assert "about 12 billion" in machine.speed(MEASURED.model_copy(update={"fluent": 12.3}))
    assert machine.speed(Speeds()) == ""


def test_measures() -> None:
    """What was measured, when and on what, then real answers; a question too short to time is left out."""
    assert list(machine.measures(overview(), datetime.now(UTC))) == [
        Fact("Measured", "2 February 2026, 02:40, on the processor"),
        Fact("Memory is read at", "10.0 GB/s"),
        Fact("hob-guide", "reads 6,543 and writes 988 tokens/s"),
        Fact("llama", "read 812 and wrote 18.2 tokens/s, median of 3 answers"),
        Fact("tiny", "wrote 5.0 tokens/s, median of 1 answer"),
    ]
    assert list(machine.measures(overview(speed=Speeds(), answers=()), datetime.now(UTC))) == []


@pytest.mark.parametrize(
    ("status", "model", "text"),
    [
        ("ok", "llama", "llama on the processor, 600 MB"),
        ("ok", "", "nothing; the next question brings its model back"),
        ("starting", "", "nothing: the engine is starting"),
    ],
)
def test_the_engine(status: str, model: str, text: str) -> None:
    """What is loaded, or why nothing is."""
    reason = "" if status == "ok" else "the engine is starting"
    state = overview().engine.model_copy(update={"status": status, "model": model, "reason": reason})
    facts = {fact.name: fact.text for fact in machine.engine(overview(engine=state))}
    assert facts["Loaded"] == text
    assert facts["Running for"] == "1 day"
    assert facts["Engine"] == "Hob's own"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "less than a minute"), (61, "1 minute"), (7300, "2 hours"), (200_000, "2 days")],
)
def test_durations(seconds: float, text: str) -> None:
    """Times for people, in their largest unit."""
    assert machine.duration(seconds) == text


def test_the_page(site: Site) -> None:
    """The page shows the machine and the loaded model, and its button asks for a measurement."""
    with httpx2.Client(
        base_url=site.url, headers={"origin": site.url}, follow_redirects=True, timeout=20
    ) as client:
        settings = client.get("/settings")
        assert 'href="/system"' in settings.text
        page = client.get("/system")
        assert page.status_code == 200
        assert f"{MODEL} on the processor" in page.text
        assert "Runs every model." in page.text
        asked = client.post("/system/measure")
        assert asked.status_code == 200
        assert "Hob measures as soon as nobody needs it" in asked.text
        assert client.get("/api/system").json()["speed"]["due"]
