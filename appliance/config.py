"""Settings, read once: flags over `HOB_*` variables over `hob.toml` over a backup's over the defaults below.

The class is the one table of settings: the command line, the reference page and the errors come from it.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from platformdirs import user_config_path, user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from appliance.errors import SettingsError
from appliance.upstream.settings import Upstream, distinct

DEVICE = r"^(cuda|metal|vulkan|cpu|cuda-sm_\d{2,3}a?)$"
"""What the setting `devices` may list: a kind, or one of CUDA's targets, which is then tried unasked."""

RESTORED = "restored-settings.json"
"""File in the data folder with the settings that came with a backup."""


def _listed(value: object) -> object:
    """A list out of a variable's or flag's text: "cuda,cpu", or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


Name = TypeVar("Name")
Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_listed)]
"""Several values; with commas between them in variables and flags."""


def config_files() -> list[Path]:
    """Files that are read, later ones winning: the system's two, the person's, the one HOB_CONFIG names."""
    files = [
        Path("/etc/hob/hob.toml"),
        Path("/var/lib/hob-system/hob.toml"),  # what the owner has set on a device of its own
        user_config_path("hob") / "hob.toml",
    ]
    if named := os.environ.get("HOB_CONFIG"):
        files.append(Path(named))
    return files


class Settings(BaseSettings):
    """Everything that can be set. Immutable; made once by `load_settings`."""

    model_config = SettingsConfigDict(env_prefix="HOB_", frozen=True, extra="forbid")

    data_dir: Path = Field(
        default_factory=lambda: user_data_path("hob"),
        description="Folder of all state: chats, models, compiled libraries, keys.",
    )
    system_dir: Path = Field(
        Path("/usr/share/hob"),
        description="Folder of models and compiled libraries that came with the system; only read.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    lan: bool = Field(False, description="Listen on all interfaces and announce on the LAN.")
    name: str = Field(
        "hob",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Host name on the LAN, without .local.",
    )
    setup_code: str = Field("", description="Code for the first visitor; empty: a new one at each start.")
    allowed_hosts: Names[str] = Field(
        (), description="Further host names this Hob may be reached by, for example through a proxy."
    )
    model: str = Field("hob-guide", description="Model that answers when a request or a chat names none.")
    context: int = Field(4096, ge=128, description="Tokens of context reserved for a conversation.")
    unload_after: int = Field(
        1800, ge=0, description="Seconds without a request after which a model leaves memory; 0 keeps it."
    )
    devices: Names[Annotated[str, Field(pattern=DEVICE)]] = Field(
        (),
        description="What computes, in order of trial: cuda, metal, vulkan, cpu; empty is Hob's own choice.",
    )
    device_fallback: Literal["next", "refuse"] = Field(
        "next",
        description="When a device fails a model: next tries the one after it, refuse says so and stops.",
    )
    engine: Literal["auto", "native", "mlc", "upstream"] = Field(
        "auto",
        description="What runs models: native (Hob), mlc (MLC-LLM), upstream (other servers alone).",
    )
    engine_socket: str = Field(
        "", description="Socket of an engine that runs on its own; where there is none, Hob starts one."
    )
    upstreams: Annotated[Names[Upstream], AfterValidator(distinct)] = Field(
        (), description="Other servers whose models are offered too; see [engines](engines.md)."
    )
    threads: int = Field(0, ge=0, description="Engine threads; 0 means one per physical core.")
    kernels: Literal["fast", "exact"] = Field(
        "fast", description="fast: int8 activations; exact: float activations, slower."
    )
    backups_kept: int = Field(7, ge=1, le=365, description="Nightly backups that are kept, the newest ones.")
    update_url: str = Field(
        "",
        pattern=r"^$|^https?://",
        description="Address of a `.manifest.json` asked every night for a newer version; empty: never.",
    )
    update_install: bool = Field(
        False, description="Install what `update_url` has at once, at night, and restart."
    )
    max_body: int = Field(4 * 2**20, ge=1024, description="Largest request body, in bytes.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then TOML files."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_files())


def load_settings(**flags: Any) -> Settings:
    """Read every source and return the settings. Flags of value None count as not given.

    Raises:
        SettingsError: a wrong value or unknown key, with both named; or a file that cannot be read.
    """
    for file in config_files():
        _check(file)
    given = {key: value for key, value in flags.items() if value is not None}
    settings = _made(given)
    # What came with a backup holds where nothing on this machine says otherwise.
    restored = _restored(settings.data_dir / RESTORED)
    return _made({key: restored[key] for key in restored.keys() - settings.model_fields_set} | given)


def _made(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        variable = f"HOB_{first['loc'][0]}".upper()
        # What is written there by mistake may be a key or a password.
        got = "" if first["loc"][0] == "upstreams" else f" (got {first['input']!r})"
        raise SettingsError(
            f"setting {key!r}: {first['msg']}{got}",
            hint=f"It is set by a flag, {variable}, or one of {', '.join(map(str, config_files()))}.",
        ) from error


def _restored(file: Path) -> dict[str, Any]:
    """The settings that came with a backup; none where none was restored."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{file}, which came with a backup, cannot be read: {error}", hint="Remove it, or restore again."
        ) from error
    if not isinstance(found, dict):
        raise SettingsError(f"{file}, which came with a backup, holds no settings", hint="Remove it.")
    return {key: value for key, value in found.items() if key in Settings.model_fields}


def _check(file: Path) -> None:
    """Refuse a file that is not TOML, or that HOB_CONFIG names and is not there."""
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if str(file) == os.environ.get("HOB_CONFIG"):
            raise SettingsError(f"{file}, which HOB_CONFIG names, does not exist") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # covers bad TOML and bad UTF-8
        raise SettingsError(f"{file} is not valid TOML: {error}") from error
