"""Name under which the package is installed, and its version, in a file without imports."""

DISTRIBUTION = "milpath"
__version__ = "0.1.0"
