"""How programs are compiled here, and that they are kept between runs unless told otherwise."""

import os
from importlib import metadata
from pathlib import Path

SWITCH = "JAXPLAIN_COMPILATION_CACHE"
"""Environment variable: "0", "off", "no" or "false" keeps nothing; unset or anything else keeps."""

MEASURED = "0.10."
FLAGS = ("--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_use_fusion_emitters=false")
"""What is faster on a CPU with the jaxlib they were measured with: docs/performance.md."""


def tune() -> str:
    """Add `FLAGS` to the environment variable XLA_FLAGS, and return it; what it says already stays.

    It must come before JAX's first computation. Other versions of jaxlib get none: XLA ends the
    process over a flag that it does not know.

    Example:
        >>> tune() == tune() == os.environ.get("XLA_FLAGS", "")
        True
    """
    given = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib").startswith(MEASURED):
        missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
        given = os.environ["XLA_FLAGS"] = " ".join([*given.split(), *missing])
    return given


def folder() -> Path:
    """Return the folder: JAX_COMPILATION_CACHE_DIR, or one in the user's cache folder."""
    import platformdirs

    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_path("jaxplain")) / "compiled"


def wanted(*, option: bool) -> bool:
    """Return whether to keep compiled programs, by the command's option and the environment."""
    return option and os.environ.get(SWITCH, "").strip().lower() not in ("0", "off", "no", "false")


def keep(*, option: bool = True) -> Path | None:
    """Turn JAX's persistent compilation cache on, or off; compile for a CPU as is best there.

    Args:
        option: what the command line says; the environment can only turn it off.

    Returns:
        The folder, or None where nothing is kept: not wanted, or the folder cannot be written.
    """
    import jax

    tune()
    place: Path | None = folder() if wanted(option=option) else None
    if place is not None:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            place = None
    if place is not None and not os.access(place, os.W_OK):
        place = None
    jax.config.update("jax_enable_compilation_cache", place is not None)
    if place is not None:
        jax.config.update("jax_compilation_cache_dir", str(place))
        # The many small programs around a method add up to seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return place
