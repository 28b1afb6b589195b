"""Resolve what W&B is told about a run, and refuse before the run what W&B would refuse.

A key of `logger` that is set wins over W&B's environment variable for the same, and that over W&B's settings files
(`wandb init`, `wandb login --host`, `wandb offline`).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from growlm.config.schema import LoggerConfig, RunConfig
from growlm.reporting.loggers.wandb_login import find_api_key, has_wandb_login
from growlm.runtime.errors import UserError

DEFAULT_PROJECT = "growlm"
FORBIDDEN_CHARACTERS = "/\\#?%:"
"""Characters that W&B allows neither in a project nor, as they are parts of addresses, in an entity."""
NAME_LIMIT = 128
"""Largest number of characters in a project, an entity, a group or the name of a run."""
TAG_LIMIT = 64
MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline"} | {
    "disabled": "disabled"
}
"""Values of WANDB_MODE that a run can have, and what they mean."""
OWN_CHOICES = {
    "WANDB_RUN_ID": "growlm gives every run an id, by which it resumes the W&B run",
    "WANDB_RESUME": "growlm resumes the W&B run of resume=RUN_DIR",
    "WANDB_RESUME_FROM": "growlm resumes the W&B run of resume=RUN_DIR",
    "WANDB_FORK_FROM": "growlm logs every run as a new one, or resumes its own",
}
"""Environment variables for what growlm decides, and how it does."""


@dataclass(frozen=True)
class WandbSettings:
    """What a run's `wandb.init` is given."""

    project: str
    entity: str | None
    group: str | None
    name: str
    tags: list[str]
    mode: Any


def shorten(text: str, limit: int) -> str:
    """Return the text; one over the limit cut, with a checksum of all of it, so that others stay different."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def resolve_wandb_settings(config: RunConfig, run_name: str) -> WandbSettings:
    """Return what W&B is told; names and tags that growlm makes itself are shortened to what W&B allows.

    Args:
        config: Config of the run.
        run_name: Name of the run's folder.

    Raises:
        UserError: If a setting, or an environment variable of W&B's, cannot be used.
    """
    check_wandb_keys(config.logger)
    found = _read_environment()
    settings = config.logger
    tags = [shorten(config.name, TAG_LIMIT), *settings.tags, *(found.run_tags or ())]
    return WandbSettings(
        project=settings.project or found.project or DEFAULT_PROJECT,
        entity=settings.entity or found.entity,
        group=settings.group or found.run_group,
        name=found.run_name or shorten(run_name, NAME_LIMIT),
        tags=list(dict.fromkeys(tags)),
        mode=_resolve_mode(settings, found),
    )


def check_wandb_keys(settings: LoggerConfig) -> None:
    """Check the keys that W&B limits.

    Raises:
        UserError: For the first that is wrong.
    """
    for key in ("project", "entity"):
        _check_text(f"logger.{key}", getattr(settings, key), FORBIDDEN_CHARACTERS)
    _check_text("logger.group", settings.group)
    for tag in settings.tags:
        _check_tag("logger.tags", tag)


def describe_unused_variables() -> list[str]:
    """Return a line for each environment variable of W&B's that the run does not follow."""
    folder = os.environ.get("WANDB_DIR")
    if not folder:
        return []
    return [f"WANDB_DIR={folder} is not used: W&B's files lie in the run's folder, under wandb/"]


def _check_text(key: str, value: str | None, forbidden: str = "") -> None:
    if value is None:
        return
    if not value.strip():
        raise UserError(key, repr(value), "must not be empty; leave it out for the default")
    if len(value) > NAME_LIMIT:
        raise UserError(
            key, value, f"has {len(value)} characters, and W&B allows at most {NAME_LIMIT}"
        )
    if found := [character for character in forbidden if character in value]:
        reason = f"contains {' '.join(found)}, and W&B allows none of {' '.join(forbidden)}"
        raise UserError(key, value, reason)


def _check_tag(key: str, tag: str) -> None:
    if not tag:
        raise UserError(key, repr(tag), "W&B allows no empty tag; leave it out")
    if len(tag) > TAG_LIMIT:
        reason = f"has {len(tag)} characters, and W&B allows at most {TAG_LIMIT} in a tag"
        raise UserError(key, tag, reason)


def _read_environment() -> Any:
    """Return W&B's own settings as its files and environment variables make them.

    Raises:
        UserError: If a variable has a value that W&B does not accept, or is for something that growlm decides.
    """
    import wandb

    settings = wandb.Settings(silent=True)
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    settings.settings_system = str(Path(folder).expanduser() / "settings")
    settings.update_from_system_settings()
    by_agent = (
        "WANDB_SWEEP_ID" in os.environ
    )  # W&B's agent chooses the id, the project and the entity
    for name, value in sorted(os.environ.items()):
        if not name.startswith("WANDB_"):
            continue
        if name in OWN_CHOICES and not by_agent:
            raise UserError(name, value, f"cannot be used: {OWN_CHOICES[name]}. Unset it")
        try:
            settings.update_from_env_vars({name: value})
        except (ValueError, TypeError, wandb.Error) as error:
            reason = f"is an environment variable that W&B does not accept: {_explain(error)}"
            raise UserError(name, value, reason) from error
    for name in ("WANDB_NAME", "WANDB_RUN_GROUP"):
        _check_text(name, os.environ.get(name) or None)
    _check_text("WANDB_ENTITY", os.environ.get("WANDB_ENTITY") or None, FORBIDDEN_CHARACTERS)
    return settings


def _explain(error: Exception) -> str:
    details = getattr(error, "errors", None)  # those of pydantic
    return str(details()[0]["msg"] if callable(details) else error).strip()


def _resolve_mode(settings: LoggerConfig, found: Any) -> str:
    """Return `online`, `offline` or `disabled`.

    Raises:
        UserError: If W&B is to be used online without a login, or with a key that it does not accept.
    """
    variable = os.environ.get("WANDB_MODE")
    key, value = ("logger.mode", settings.mode) if settings.mode != "auto" else ("WANDB_MODE", "")
    if settings.mode == "auto" and (variable or found.mode != "online"):
        value = found.mode
    if not value:
        if not has_wandb_login(found.base_url):
            return "offline"
        key, value = "WANDB_API_KEY", "online"
    if value not in MODES:
        reason = f"cannot be used: a run is logged from one process. Use {', '.join(MODES)}"
        raise UserError(key, value, reason)
    mode = MODES[value]
    if mode == "online":
        _check_login(key, value, found.base_url)
    return mode


def _check_login(key: str, value: str, base_url: str) -> None:
    if not has_wandb_login(base_url):
        reason = "you are not logged in to W&B; run `wandb login`, or use logger.mode=offline"
        raise UserError(key, value, reason)
    api_key = find_api_key(base_url)
    if api_key is None:
        return
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE") and os.environ.get("WANDB_API_KEY"):
        reason = "W&B allows one of it and WANDB_API_KEY; unset one of them"
        raise UserError("WANDB_IDENTITY_TOKEN_FILE", "(set)", reason)
    where = "WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "the password in the netrc file"
    shown = f"{api_key[:3]}..."
    advice = "run `wandb login` again, or use logger.mode=offline"
    if re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", api_key):
        return  # a token
    secret = api_key.partition("-")[2] or api_key
    if len(secret) < 40 or not re.fullmatch(r"[\w-]+", secret):
        problem = (
            f"has {len(secret)} characters, and W&B's keys have at least 40"
            if len(secret) < 40
            else "has characters that are no letters, digits or underscores"
        )
        host = urlparse(base_url).hostname
        raise UserError(where, shown, f"is not an API key of {host}: {problem}; {advice}")
