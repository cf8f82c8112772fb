"""The basics that every part of a host needs: files, units, packages, kernel, machine."""
