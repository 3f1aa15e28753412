"""Commands that root runs on the data of a service: they run as the service's own user.

A file that root made among them would be one that the service cannot write: the log of the database, say.
"""

import os
import pwd
from pathlib import Path

from appliance.config import load_settings
from appliance.errors import SettingsError

NOT_FOR = frozenset({"image", "update"})
"""Verbs that need root and touch nothing of the service."""


def owner_of(data_dir: Path) -> pwd.struct_passwd | None:
    """The user to become for work on a data folder; None to stay who one is.

    Nobody but root can become anybody; a folder that is not there yet, or is root's, belongs to root.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = data_dir.stat().st_uid
        return pwd.getpwuid(owner) if owner != 0 else None
    except (OSError, KeyError):  # not there; or of a user that this machine does not know
        return None


def become_owner(verb: str) -> None:
    """Become the user whose data this command works on, for good, if root runs it on another's."""
    if verb in NOT_FOR:
        return
    try:
        user = owner_of(load_settings().data_dir)
    except SettingsError:  # the verb itself will say so
        return
    if user is None:
        return
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.umask(0o077)
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):  # root's
        os.environ.pop(name, None)
