"""Who may ask: tokens, scopes, rates and addresses; what is opened to whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from serve.access.build_guard import build_guard
from serve.access.guard import Guard, address_of, client_address
from serve.access.rate_limits import RateLimits
from serve.access.tokens import VARIABLE, RenewedTokens, Tokens, read_tokens
from serve.config import ServeConfig, ServeConfigError
from serve.models.limits import RefusedError

ADMIN, INFER, METRICS = ("a" * 16, "b" * 20, "c" * 30)
LINES = f"""
# who may do what
alice admin {ADMIN}
bob   infer {INFER}
graph metrics {METRICS}
"""


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens"
    path.write_text(LINES)
    found = read_tokens(str(path))
    assert found is not None
    return found


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.reason


def identify(guard: Guard, scope: str, secret: str | None = None, peer: str = "10.1.2.3", **more):
    authorization = None if secret is None else f"Bearer {secret}"
    return guard.identify(scope, authorization=authorization, peer=peer, **more).principal


def test_token_opens_its_scope_and_admin_opens_all(tokens: Tokens):
    guard = Guard(tokens)
    assert identify(guard, "infer", INFER) == "token bob"
    assert identify(guard, "metrics", METRICS) == "token graph"
    for scope in ("infer", "metrics", "admin"):
        assert identify(guard, scope, ADMIN) == "token alice"
    assert reason_of(lambda: identify(guard, "admin", INFER)) == "forbidden"
    assert reason_of(lambda: identify(guard, "infer", METRICS)) == "forbidden"


@pytest.mark.parametrize("given", [None, "", "Bearer", "Basic " + INFER, INFER, "Bearer x" + INFER])
def test_without_a_known_token_nobody_is_let_in_not_even_from_here(tokens: Tokens, given):
    call = partial(Guard(tokens).identify, "infer", authorization=given, peer="127.0.0.1")
    assert reason_of(call) == "unauthenticated"


def test_every_token_is_compared_whichever_fits(tokens: Tokens, monkeypatch):
    import hmac

    seen: list[bytes] = []
    real = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        seen.append(b)
        return real(a, b)

    monkeypatch.setattr("serve.access.tokens.hmac.compare_digest", spy)
    for secret in (ADMIN, METRICS, "nothing of the kind"):
        seen.clear()
        tokens.find(secret)
        assert len(seen) == 3, "an early end would tell which token was close"


def test_tokens_come_from_the_environment_too(monkeypatch, tmp_path: Path):
    assert read_tokens(None) is None
    monkeypatch.setenv(VARIABLE, f"alice admin {ADMIN}; bob infer,metrics {INFER}")
    found = read_tokens(None)
    assert found is not None
    assert found.secret_for("metrics") == ADMIN
    token = found.find(INFER)
    assert token is not None
    assert token.scopes == {"infer", "metrics"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice infer", "line 1: 2 words, allowed 3 or 4: NAME SCOPES SECRET"),
        (
            f"\nalice root {ADMIN}",
            "line 2: scope root is unknown, allowed infer, metrics, audit, balance, admin",
        ),
        ("alice infer short", "line 1: the secret is no token of 16 letters"),
        (f"a infer {ADMIN}\na infer {INFER}", "the same name"),
        (f"a infer {ADMIN}\nb infer {ADMIN}", "the same secret"),
        ("# nobody", "holds no token"),
    ],
)
def test_what_is_no_token_is_named_by_its_line_and_never_shown(tmp_path, text, message):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ServeConfigError, match=message) as caught:
        read_tokens(str(path))
    assert ADMIN not in str(caught.value)
    assert "short" not in str(caught.value)


def test_token_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ServeConfigError, match="can't be read"):
        read_tokens(str(tmp_path / "none"))


def test_without_tokens_only_this_host_administers_and_no_page_of_a_browser():
    guard = Guard()
    assert identify(guard, "admin", peer="127.0.0.1") == "127.0.0.1"
    assert identify(guard, "infer", peer="10.1.2.3") == "10.1.2.3"
    assert reason_of(lambda: identify(guard, "admin", peer="10.1.2.3")) == "forbidden"
    page = {"origin": "http://elsewhere.example"}
    assert reason_of(lambda: identify(guard, "admin", peer="127.0.0.1", **page)) == "forbidden"


@pytest.mark.parametrize(
    ("peer", "principal"),
    [
        ("ipv4:10.0.0.7:5012", "10.0.0.7"),
        ("ipv6:%5B2001:db8::7:1%5D:5012", "2001:db8::/64"),
        ("ipv6:[::ffff:10.0.0.7]:5012", "10.0.0.7"),
        ("unix:/run/socket", "unix:"),
    ],
)
def test_principal_without_a_token_is_the_address_and_of_ipv6_the_network(peer, principal):
    assert identify(Guard(), "infer", peer=address_of(peer)) == principal


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_rate_holds_on_average_and_says_when_to_come_back():
    now = Now()
    rates = RateLimits(10.0, 3, now)
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert rates.take("b") == 0, "another principal has a bucket of its own"
    now.s += 0.1
    assert [rates.take("a") for _ in range(2)] == [0, pytest.approx(0.1)]
    admitted = 0
    for _ in range(1000):
        now.s += 0.01
        admitted += rates.take("a") == 0
    assert admitted == pytest.approx(100, abs=1)


def test_large_requests_are_paid_for_by_waiting_longer():
    now = Now()
    rates = RateLimits(10.0, 4, now)
    assert rates.take("a") == 0
    rates.charge("a", 13)  # 14 of 4: ten below zero
    assert rates.take("a") == pytest.approx(1.1)
    now.s += 1.1
    assert rates.take("a") == 0


def test_memory_is_bounded_by_who_asks_now():
    now = Now()
    rates = RateLimits(1.0, 1, now, max_principals=50)
    for client in range(200):
        rates.take(f"client {client}")
    assert len(rates) == 50
    now.s += 2
    rates.take("one more")
    assert len(rates) == 1, "buckets that are full again are the same as none"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_open_address_without_tokens_is_refused_unless_that_is_meant(
    timed_config: ServeConfig, tmp_path, host
):
    config = timed_config.model_copy(update={"host": host})
    with pytest.raises(
        ServeConfigError, match=f"host {host} lets others in and there are no tokens"
    ):
        build_guard(config, Now())
    build_guard(config.model_copy(update={"allow_anonymous": True}), Now())
    (tmp_path / "tokens").write_text(LINES)
    build_guard(config.model_copy(update={"tokens_file": str(tmp_path / "tokens")}), Now())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_loopback_needs_no_tokens(timed_config: ServeConfig, host):
    build_guard(timed_config.model_copy(update={"host": host}), Now())


PROXIES = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.1")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "1.1.1.1, 8.8.8.8", "8.8.8.8"),  # what the client wrote itself is not read
        ("10.0.0.1", "8.8.8.8, 10.2.3.4", "8.8.8.8"),
        ("10.0.0.1", "8.8.8.8:4711", "8.8.8.8"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("9.9.9.9", "8.8.8.8", "9.9.9.9"),
        ("::ffff:10.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("", "8.8.8.8", ""),
    ],
)
def test_a_trusted_proxy_says_who_asks(peer: str, forwarded: str | None, client: str):
    assert client_address(peer, forwarded, PROXIES) == client


def test_nobody_is_trusted_unless_said():
    assert client_address("127.0.0.1", "8.8.8.8", ()) == "127.0.0.1"


@pytest.mark.parametrize(
    ("more", "is_let_in"),
    [
        ({}, True),
        ({"host": "localhost:8000"}, True),
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "evil.example:8000"}, False),  # a name that was bound to this host meanwhile
        ({"origin": "http://evil.example"}, False),
        ({"forwarded": "8.8.8.8"}, False),  # a proxy on this host asks for somebody else
    ],
)
def test_without_tokens_only_this_host_itself_administers(more: dict[str, str], is_let_in: bool):
    def ask() -> str:
        return identify(Guard(), "admin", peer="127.0.0.1", **more)

    assert (ask() == "127.0.0.1") if is_let_in else (reason_of(ask) == "forbidden")


class Hands:
    """A clock that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_tokens_are_handed_out_and_taken_back_while_a_server_runs(tmp_path: Path, caplog):
    path, clock = tmp_path / "tokens", Hands()
    path.write_text(f"bob infer {INFER}\n")
    guard = Guard(RenewedTokens(str(path), lambda _: None, clock))
    assert identify(guard, "infer", INFER) == "token bob"
    path.write_text(f"eve infer {METRICS}\n")
    assert identify(guard, "infer", INFER) == "token bob", "not looked at all the time"
    clock.now_s += 1.0
    assert identify(guard, "infer", METRICS) == "token eve"
    assert reason_of(lambda: identify(guard, "infer", INFER)) == "unauthenticated"
    for mistake in ("eve infer short\n", "", None):
        path.unlink()
        if mistake is not None:
            path.write_text(mistake)
        clock.now_s += 1.0
        assert identify(guard, "infer", METRICS) == "token eve", "a mistake changes nothing"
    assert caplog.text.count("the tokens of before stay") == 3
    assert METRICS not in caplog.text
    path.write_text(f"eve infer {INFER}\n")
    clock.now_s += 1.0
    assert identify(guard, "infer", INFER) == "token eve"


def test_new_tokens_may_not_name_a_tenant_that_is_not_there(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("serve.access.watched_files.LOOK_EVERY_S", 0.0)
    path = tmp_path / "tokens"
    path.write_text(f"bob infer {INFER}\n")
    guard = build_guard(ServeConfig(checkpoint="x", tokens_file=str(path)), float)
    path.write_text(f"bob infer {METRICS} nobody\n")
    assert identify(guard, "infer", INFER) == "token bob"
    path.write_text(f"bob infer {METRICS}\n")
    assert identify(guard, "infer", METRICS) == "token bob"


def test_memory_is_shared_by_a_host_or_by_a_token_never_from_afar(tokens: Tokens):
    for peer in ("127.0.0.1", "::1", "unix:"):
        caller = Guard().identify("infer", authorization=None, peer=peer)
        assert Guard().memory_owner(caller, peer=peer) == ""
    guard = Guard(tokens)
    caller = guard.identify("infer", authorization=f"Bearer {INFER}", peer="127.0.0.1")
    assert guard.memory_owner(caller, peer="127.0.0.1") == "token bob"
    assert reason_of(lambda: guard.memory_owner(caller, peer="10.0.0.1")) == "forbidden"
