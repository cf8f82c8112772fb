"""What every part of a host needs: files, units, packages, the kernel, the machine itself."""
