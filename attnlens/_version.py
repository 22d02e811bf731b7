"""The version, and those of the libraries that determine results."""

__version__ = "0.3.0"


def versions() -> dict[str, str]:
    """Return the versions of attnlens, torch and transformers."""
    from importlib.metadata import version

    return {"attnlens": __version__, **{name: version(name) for name in ("torch", "transformers")}}
