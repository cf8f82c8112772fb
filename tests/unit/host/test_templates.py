"""The file of the package manager."""

from tests.unit.templates import rendered


def test_apt_waits_for_its_lock() -> None:
    assert 'DPkg::Lock::Timeout "600";' in rendered("apt/60terrafirma.j2")
