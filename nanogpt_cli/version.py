"""The package's version, apart from the package so that its modules need not import their root."""

__version__ = "0.1.0"
