"""Services are asked on this machine and where the user says; nothing in a URL leads elsewhere."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from rlhf_core.addresses import check_url, host_of


def resolving_to(*addresses: str) -> Any:
    return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]"])
def test_this_machine_may_always_be_asked(host: str) -> None:
    check_url(f"http://{host}:8000/rewards", [], "url", resolve=True)


@pytest.mark.parametrize(
    "host",
    [
        "rm.example.com",
        "10.0.0.7",
        "169.254.169.254",
        "0.0.0.0",
        "[::]",
        "2130706433",
        "localhost.example.com",
        "127.0.0.1.nip.io",
    ],
)
def test_any_other_host_must_be_listed(host: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed, only this machine"):
        check_url(f"https://{host}/rewards", ["rm2.example.com", "192.168.0.0/16"], "rewards.url")


@given(
    st.sampled_from(["rm.example.com", "RM.Example.com", "rm.example.com."]),
    st.sampled_from(["rm.example.com", "Rm.example.COM."]),
)
def test_a_name_has_one_spelling(host: str, listed: str) -> None:
    check_url(f"https://{host}/rewards", [listed], "url")


@given(st.ip_addresses(v=4))
def test_a_network_lists_its_addresses_and_no_others(address: Any) -> None:
    url, inside = f"http://{address}/", str(address).startswith("10.")
    if inside or address.is_loopback:
        check_url(url, ["10.0.0.0/8"], "url")
    else:
        with pytest.raises(ConfigError):
            check_url(url, ["10.0.0.0/8"], "url")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://127.0.0.1/", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("127.0.0.1:8000/rewards", "http:// or https://"),
        ("http://", "name a host"),
        ("http://me:secret@127.0.0.1/", "no user or password"),
        ("http://127.0.0.1@evil.example.com/", "no user or password"),
        ("http://127.0.0.1\\@evil.example.com/", "backslashes"),
        ("http://127.0.0.1 .evil.example.com/", "no spaces"),
        ("http://loc\nalhost/", "no spaces"),
        ("http://\uff4cocalhost/", "beyond ASCII"),
        ("http://127.0.0.1:99999/", "is no URL"),
        ("http://[::1/", "is no URL"),
    ],
)
def test_what_is_no_plain_url_is_refused_with_the_reason(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_url(url, ["evil.example.com"], "rewards.url")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match=said):
        host_of(url)


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "fd00::1", "::ffff:10.1.2.3"])
def test_a_listed_name_that_leads_inside_must_have_its_address_listed_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("8.8.8.8", address))
    check_url("https://rm.example.com/", ["rm.example.com"], "url")
    with pytest.raises(ConfigError, match=r"resolves to .* no public address"):
        check_url("https://rm.example.com/", ["rm.example.com"], "url", resolve=True)
    networks = ["10.0.0.0/8", "192.168.0.1", "169.254.0.0/16", "100.64.0.0/10", "fd00::/8"]
    check_url("https://rm.example.com/", ["rm.example.com", *networks], "url", resolve=True)


def test_public_names_and_names_that_only_a_proxy_knows_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("8.8.8.8"))
    check_url("https://rm.example.com/", ["rm.example.com"], "url", resolve=True)

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    check_url("https://rm.example.com/", ["rm.example.com"], "url", resolve=True)
