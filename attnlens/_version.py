"""The version, and those of the libraries that determine results."""

from functools import cache

__version__ = "0.3.0"


def versions() -> dict[str, str]:
    """Return the versions of attnlens, torch and transformers."""
    return {
        "attnlens": __version__,
        **{name: _version_of(name) for name in ("torch", "transformers")},
    }


@cache
def _version_of(name: str) -> str:
    """Read once: every trace notes it."""
    from importlib.metadata import version

    return version(name)
