"""The fact about kernel settings."""

from terrafirma.host.kernel import KernelSettings
from tests.unit.facts import ask


def test_settings_of_a_kernel() -> None:
    assert KernelSettings().process(
        ["/proc/sys/net/ipv4/ip_nonlocal_bind=0", "/proc/sys/kernel/core_pattern=|/x a=b %p"]
    ) == {"net.ipv4.ip_nonlocal_bind": "0", "kernel.core_pattern": "|/x a=b %p"}


def test_settings_that_this_kernel_lacks_are_left_out() -> None:
    """A host without IPv6 has nothing below net.ipv6."""
    known = ask(KernelSettings, names=["kernel.ostype", "net.no_such.setting"])
    assert known == {"kernel.ostype": "Linux"}
