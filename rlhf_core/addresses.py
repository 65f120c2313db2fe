"""Which addresses a service may be asked at: this machine, and the hosts that the user has listed. Importable without torch or network."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from data_processing.errors import ConfigError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# What libraries read in different ways: one would check another host than the next one asks.
_AMBIGUOUS = re.compile(r"[\s\\\x00-\x1f\x7f]|[^\x00-\x7f]")


def host_of(url: str) -> str:
    """The host of an http or https URL, in lower case. Raises `ValueError` saying what is wrong with the URL."""
    if _AMBIGUOUS.search(url):
        raise ValueError("must hold no spaces, backslashes or characters beyond ASCII; write those as %XX, a host as xn--...")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no URL ({error}); give one such as http://127.0.0.1:8765/rewards") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must begin with http:// or https:// and name a host, as http://127.0.0.1:8765/rewards does")
    if parts.username is not None:
        raise ValueError("must hold no user or password; key_from names the environment variable that a key is read from")
    return host.rstrip(".")


def check_url(url: str, allowed_hosts: Sequence[str], place: str, *, resolve: bool = False) -> None:
    """Raise `ConfigError`, naming the setting `place`, unless services may be asked at `url`.

    The loopback addresses and localhost always may be. `allowed_hosts` are names, addresses and networks (`10.0.0.0/8`): any other
    host must be among them. With `resolve` a name is looked up too, and each address of it that is not public must be among them
    by itself. What does not resolve here passes: asking it fails by itself, or a proxy knows it.
    """
    shown = "(a URL with a user)" if "@" in url else repr(url)
    try:
        host = host_of(url)
    except ValueError as error:
        raise ConfigError(f"{place}: got {shown}; it {error}") from error
    if is_loopback(host):
        return
    known = list(allowed_hosts) or "nothing"
    if not _is_listed(host, allowed_hosts):
        raise ConfigError(
            f"{place}: got {shown}; the host '{host}' is not allowed, only this machine and what runtime.allowed_hosts lists ({known}): "
            f"add '{host}' to it"
        )
    for address in _addresses(host) if resolve else ():
        if not (address.is_global or address.is_loopback or _is_listed(str(address), allowed_hosts)):
            raise ConfigError(
                f"{place}: got {shown}; '{host}' resolves to {address}, which is no public address, and runtime.allowed_hosts lists {known}: "
                f"add '{address}', or its network, where that is meant"
            )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    address = _as_address(host)
    return host == "localhost" if address is None else address.is_loopback


def _is_listed(host: str, allowed_hosts: Iterable[str]) -> bool:
    address = _as_address(host)
    names = {entry.lower().rstrip(".") for entry in allowed_hosts}
    return host in names or (address is not None and any(address in network for network in _networks(names)))


def _networks(names: Iterable[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for name in names:
        try:
            found.append(ipaddress.ip_network(name, strict=False))
        except ValueError:  # the name of a host
            continue
    return found


def _as_address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _addresses(host: str) -> list[_Address]:
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return []
    return [address for address in map(_as_address, sorted(found)) if address is not None]
